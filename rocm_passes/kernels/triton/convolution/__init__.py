"""Triton kernels beside convolutions: pads, and frames joined behind frames."""
