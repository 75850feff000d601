"""Which nodes have the same value: copies of one computation, and a rewrite's results and what they
replaced.

Matchers see through both. Who runs a site by itself must not draw two values where the graph has
one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import fx


class Sources:
    """Made of a graph before it is rewritten; told of each rewrite."""

    def __init__(self, graph: fx.Graph) -> None:
        self._first: dict[fx.Node, fx.Node] = {}
        self._replaced: dict[fx.Node, fx.Node] = {}
        seen: dict[Hashable, fx.Node] = {}
        for node in graph.nodes:
            self._first[node] = node
            if node.op == "call_function" and not _is_random(node.target):
                self._first[node] = seen.setdefault(self._key(node), node)

    def note(self, results: Iterable[fx.Node], outputs: Iterable[fx.Node]) -> None:
        """These results have replaced these outputs."""
        self._replaced.update(zip(results, outputs, strict=True))

    def of(self, node: fx.Node) -> fx.Node:
        """The one node that stands for all with the value of this one."""
        node = self._replaced.get(node, node)
        return self._first.get(node, node)

    def _key(self, node: fx.Node) -> Hashable:
        def frozen(found: Any) -> Hashable:
            if isinstance(found, fx.Node):
                return self._first.get(found, found)
            if isinstance(found, (list, tuple)):
                return tuple(map(frozen, found))
            # 1, 1.0 and True are equal in Python.
            return type(found).__name__, repr(found)

        kwargs = tuple((name, frozen(found)) for name, found in sorted(node.kwargs.items()))
        return node.target, frozen(node.args), kwargs


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
