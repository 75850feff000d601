"""Writing nodes: each new node gets its fake value and the provenance of what it replaces."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from rocm_passes.fx import provenance
from rocm_passes.fx.symbols import sizes_as_nodes


class Builder:
    """Calls operators on graph nodes: `b(aten.mul.Tensor, x, y)` inserts the node and
    returns it.
    """

    def __init__(self, graph: fx.Graph, fake_mode: FakeTensorMode, origin: fx.Node) -> None:
        self.graph = graph
        self.inserted: list[fx.Node] = []
        self._fake_mode = fake_mode
        self._meta = provenance.copied(origin)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._sizes_as_nodes((args, kwargs))
        node = self.graph.call_function(target, args, kwargs)
        self.inserted.append(node)
        node.meta.update(self._meta)
        fake_args = map_arg(args, _value)
        fake_kwargs = map_arg(kwargs, _value)
        with self._fake_mode, torch.no_grad():
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        return node

    def _sizes_as_nodes(self, values: Any) -> Any:
        """Symbolic sizes as nodes that compute them."""
        symbols = {id(s): s for s in pytree.tree_leaves(values) if isinstance(s, torch.SymInt)}
        if not symbols:
            return values
        by_id = dict(zip(symbols, self._as_nodes(list(symbols.values())), strict=True))
        return pytree.tree_map(lambda v: by_id.get(id(v), v), values)

    def _as_nodes(self, sizes: list[torch.SymInt]) -> Sequence[Any]:
        # torch 2.11 has no materialize_symints; later ones' finds no unbacked symbol that was
        # renamed.
        unbacked = any(free_unbacked_symbols(size) for size in sizes)
        if unbacked or not hasattr(self.graph, "materialize_symints"):
            return sizes_as_nodes(self.graph, sizes)
        made: Sequence[Any] = self.graph.materialize_symints(sizes)
        return made

    def item(self, node: fx.Node, index: int) -> Any:
        return self(operator.getitem, node, index)

    def value(self, node: fx.Node) -> torch.Tensor:
        """The fake tensor behind a node, for its shape, strides, dtype and device."""
        found = node.meta["val"]
        assert isinstance(found, torch.Tensor)
        return found

    def discard(self) -> None:
        """Take back everything inserted so far: the graph is as it was."""
        for node in reversed(self.inserted):
            if not node.users:
                self.graph.erase_node(node)
        self.inserted.clear()


class Eager:
    """A Builder's stand-in over real tensors, so that a decomposition can be run and tested by
    itself.
    """

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    def item(self, values: Any, index: int) -> Any:
        return values[index]

    def value(self, found: torch.Tensor) -> torch.Tensor:
        return found


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode | None:
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode  # type: ignore[no-any-return]
    return None


def resolve(value: Any, replaced: Mapping[fx.Node, fx.Node]) -> Any:
    """Follow replacements made earlier in the same pass, in any nesting of lists and tuples."""

    def follow(node: fx.Node) -> fx.Node:
        while node in replaced:
            node = replaced[node]
        return node

    return map_arg(value, follow)


def outputs(graph: fx.Graph) -> list[Any]:
    """What the graph returns, as a list."""
    found = graph.output_node().args[0]
    return list(found) if isinstance(found, (list, tuple)) else [found]


def set_outputs(graph: fx.Graph, results: Sequence[Any]) -> None:
    """Return these instead, in the form that the graph has."""
    output = graph.output_node()
    output.args = (tuple(results) if isinstance(output.args[0], (list, tuple)) else results[0],)
