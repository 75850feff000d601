"""What is recognised. One idiom, one file: its formula, its spellings, when it pays, and every
refusal.
"""
