"""The supported versions of torch: each in a virtual environment of its own, with a part of the
suite.

`python -m tests.versions --write docs/measured/versions.md` runs them and writes the table.
"""
