"""A graph as it was, to go back to when a pass fails half way."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class _Record:
    """A node's parts. Its args are immutable: a change gives the node others."""

    node: fx.Node
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    type: Any
    meta: dict[str, Any]
    attributes: dict[str, Any]

    @staticmethod
    def of(node: fx.Node) -> _Record:
        return _Record(
            node, node.op, node.target, node.args, node.kwargs, node.name, node.type,
            copy.copy(node.meta), dict(vars(node)),
        )  # fmt: skip


class Snapshot:
    """What a graph's nodes are. `restore` writes them back into the same graph, as new nodes.

    It is taken before each compile, also of what a cache has: no second graph is made.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._records = [_Record.of(node) for node in graph.nodes]

    def restore(self) -> None:
        for node in reversed(list(self._graph.nodes)):
            node.args, node.kwargs = (), {}
        for node in reversed(list(self._graph.nodes)):
            self._graph.erase_node(node)
        made: dict[fx.Node, fx.Node] = {}
        for record in self._records:
            made[record.node] = self._made(record, made)

    def _made(self, record: _Record, made: dict[fx.Node, fx.Node]) -> fx.Node:
        args: Any = fx.map_arg(record.args, made.__getitem__)
        kwargs: Any = fx.map_arg(record.kwargs, made.__getitem__)
        node = self._graph.create_node(
            record.op, record.target, args, kwargs, record.name, record.type
        )
        node.meta = copy.copy(record.meta)
        # Dynamo keeps the sources of a graph's inputs beside the metadata.
        for name, value in record.attributes.items():
            if not hasattr(node, name):
                setattr(node, name, value)
        return node
