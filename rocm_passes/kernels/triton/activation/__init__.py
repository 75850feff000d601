"""Activations that multiply: SwiGLU and GEGLU."""
