"""Whole-graph passes: one file is one function, and draws the graph before and after."""
