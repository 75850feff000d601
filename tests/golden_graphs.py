"""Graphs before and after a rewrite as text, held against the files of tests/golden.

WRITE_GOLDEN=write writes the files anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import fx

from tests.rewriting import Rewritten

FOLDER = Path(__file__).parent / "golden"


def text(graph: fx.Graph) -> str:
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {node.args[0]}")
        elif node.op == "call_function":
            kwargs = "".join(f", {k}={v}" for k, v in node.kwargs.items())
            name = getattr(node.target, "_opname", getattr(node.target, "__name__", "?"))
            lines.append(f"{node.name} = {name}({', '.join(map(str, node.args))}{kwargs})")
    return "\n".join(lines)


def check(seen: Rewritten, family: str, idiom: str) -> None:
    """The one site is of that idiom, and the graphs are those of its file."""
    assert [(e.idiom, e.outcome) for e in seen.sites] == [(idiom, "rewritten")]
    (before,), (after,) = seen.before, seen.after
    found = f"# before\n{text(before)}\n\n# after\n{text(after)}\n"
    file = FOLDER / family / f"{idiom}.txt"
    if os.environ.get("WRITE_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text()
