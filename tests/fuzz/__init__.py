"""Random programs over torch functions, compiled with every idiom and compared with eager
float64.
"""
