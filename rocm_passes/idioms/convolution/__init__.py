"""Convolutions, and the pads and upsamplings around them."""
