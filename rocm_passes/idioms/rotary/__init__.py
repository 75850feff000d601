"""Rotary embeddings in every spelling, alone, in pairs, and with the norm in front of them."""
