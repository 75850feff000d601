"""Convolutions to few channels, such as those to pixels at the end of decoders."""
