"""Lowerings in plain ATen, which Inductor goes on to fuse."""
