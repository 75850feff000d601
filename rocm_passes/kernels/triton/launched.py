"""Which of our kernels a graph's generated code launches, and for which places of the user's code.

A launch that fails when the graph runs is raised in generated code, which names the kernel only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from rocm_passes.fx import provenance


@dataclass(frozen=True)
class Launched:
    """One launch. location, module: of the site that the kernel computes."""

    kernel: str
    operator: str
    location: str
    module: str


_collected: ContextVar[list[Launched] | None] = ContextVar("launches collected", default=None)


@contextmanager
def collected() -> Iterator[list[Launched]]:
    """The launches that Inductor's lowering of a graph writes meanwhile."""
    found: list[Launched] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def note(kernel: str, operator: str, node: fx.Node) -> None:
    found = _collected.get()
    if found is not None:
        place = (provenance.location(node), provenance.module(node))
        found.append(Launched(kernel, operator, *place))


def is_ours(kernel: str) -> bool:
    """Is it a kernel of this package? Code of a cached graph is not lowered, and leaves no note."""
    head = re.compile(rf"^@triton\.jit.*\ndef {re.escape(kernel)}\(", re.MULTILINE)
    files = Path(__file__).parent.rglob("*.py")
    return any(head.search(file.read_text(encoding="utf-8")) for file in files)
