"""Measuring lowerings on the user's machine, and the store that remembers."""
