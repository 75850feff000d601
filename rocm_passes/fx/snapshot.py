"""A graph as it was, to go back to when a pass fails half way."""

from __future__ import annotations

import copy

from torch import fx


class Snapshot:
    """A copy of a graph's nodes. `restore` writes them back into the same graph, as new nodes."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._copy = _copied(graph, fx.Graph())

    def restore(self) -> None:
        for node in reversed(list(self._graph.nodes)):
            node.args, node.kwargs = (), {}
        for node in reversed(list(self._graph.nodes)):
            self._graph.erase_node(node)
        _copied(self._copy, self._graph)


def _copied(source: fx.Graph, into: fx.Graph) -> fx.Graph:
    of: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        of[node] = into.node_copy(node, of.__getitem__)
        of[node].meta = copy.copy(node.meta)
        # Dynamo keeps the sources of a graph's inputs beside the metadata.
        for name, value in vars(node).items():
            if not hasattr(of[node], name):
                setattr(of[node], name, value)
    return into
