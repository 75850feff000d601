"""Choosing how a site is lowered: rules, measurement, and the store that remembers."""
