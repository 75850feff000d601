"""Activations behind linear layers."""
