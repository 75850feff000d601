"""Triton kernels of norms."""
