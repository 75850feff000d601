"""Checks that two ranks of one process group make together; test_pair.py reads what they found."""
