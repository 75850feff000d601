"""Convolutions in Triton: an implicit matrix product, channels-last, exact sums over all taps.

The modules import Triton; this package does not, so that lowerings can be registered without it.
"""
