"""Comparing code that Inductor generated."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile


@contextmanager
def only_written() -> Iterator[None]:
    """Code is generated anew and not compiled to machine code."""
    with config.patch(force_disable_caches=True), not_compiled():
        yield


@contextmanager
def not_compiled() -> Iterator[None]:
    """Generated code comes from Inductor's caches and goes there; its C++ kernels do nothing."""
    with mock.patch.object(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None):
        yield


def difference(ours: list[str], other: list[str]) -> list[str]:
    """The lines in which two compiles' generated modules differ, names and comments of graph nodes
    aside.
    """
    if len(ours) != len(other):
        return [f"{len(ours)} modules against {len(other)}"]
    return [
        line
        for one, two in zip(ours, other, strict=True)
        for line in difflib.unified_diff(_comparable(two), _comparable(one), lineterm="", n=0)
    ]


def _comparable(code: str) -> list[str]:
    """Without comments, which quote graph nodes; what a backward is given is named by position."""
    lines = [line.split("#")[0].rstrip() for line in code.splitlines()]
    names = [n for line in lines if line.endswith("= args") for n in re.findall(r"\w+", line)[:-1]]
    for position, name in enumerate(names):
        lines = [re.sub(rf"\b{name}\b", f"input_{position}", line) for line in lines]
    return lines
