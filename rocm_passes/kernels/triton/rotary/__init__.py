"""Triton kernels of rotary embeddings."""
