"""A benchmark measures rewrites: where a graph does not compile with them, it fails."""

from __future__ import annotations

import os


def raise_on_compile_error() -> None:
    """In this process and in those that it starts, unless the environment says otherwise."""
    os.environ.setdefault("ROCM_PASSES_ON_COMPILE_ERROR", "raise")
