"""Real diffusers pipelines of tiny components: each feature that users combine with compiling.

`python -m tests.support --write docs/measured/support.md` runs every pipeline with every feature
and writes the table. `tests/support/test_support.py` holds it to what happens.
"""
