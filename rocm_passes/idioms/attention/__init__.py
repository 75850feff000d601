"""Attention, as torch's kernels for it or spelled out."""
