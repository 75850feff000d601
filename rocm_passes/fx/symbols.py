"""Symbolic sizes as nodes, where fx.Graph.materialize_symints can't make them so: torch 2.11 lacks
it.

A SymInt written into a graph as it is means nothing when the graph is run as Python. Its value is
known there from the graph's inputs: a size that is one, or the size of one. An unbacked one is
known from the first node that has it; materialize_symints looks for it under the name that tracing
has since replaced by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

aten = torch.ops.aten


def sizes_as_nodes(
    graph: fx.Graph, sizes: Sequence[torch.SymInt]
) -> list[fx.Node | int | torch.SymInt]:
    """For each size a node that computes it, inserted where `graph` inserts; an int where it is a
    number.

    A size of which the inputs do not tell every symbol stays as it is: Inductor takes it, Python
    would not.
    """
    return [_as_node(graph, size) for size in sizes]


def _as_node(graph: fx.Graph, size: torch.SymInt) -> fx.Node | int | torch.SymInt:
    expression = size.node.expr
    if expression.is_number:
        return int(expression)
    producers = {symbol: _producer(graph, symbol) for symbol in expression.free_symbols}
    if any(node is None for node in producers.values()):
        return size
    tracer = GraphAppendingTracer(graph)
    proxies = {
        symbol: fx.Proxy(node, tracer) for symbol, node in producers.items() if node is not None
    }
    found = sympy_interp(PythonReferenceAnalysis, proxies, expression)
    if not isinstance(found, fx.Proxy):
        return int(found)
    _give_values([found.node])
    return found.node


def _producer(graph: fx.Graph, symbol: Any) -> fx.Node | None:
    """The input that is the symbol, or the size of an input that is."""
    tensors: list[tuple[fx.Node, int]] = []
    placeholders: Iterable[fx.Node] = graph.find_nodes(op="placeholder")
    for node in placeholders:
        found = node.meta.get("val")
        if isinstance(found, torch.SymInt) and found.node.expr == symbol:
            return node
        if isinstance(found, torch.Tensor):
            tensors += [(node, d) for d, s in enumerate(found.shape) if _is(s, symbol)]
    return _size_of(graph, *tensors[0]) if tensors else _first_of(graph, symbol)


def _first_of(graph: fx.Graph, symbol: Any) -> fx.Node | None:
    """The first computed node that is the symbol, or the size of the first that has it."""
    nodes: Iterable[fx.Node] = graph.nodes
    for node in nodes:
        found = node.meta.get("val")
        if isinstance(found, torch.SymInt) and _is(found, symbol):
            return node
        if isinstance(found, torch.Tensor):
            dim = next((d for d, s in enumerate(found.shape) if _is(s, symbol)), None)
            if dim is not None:
                with graph.inserting_after(node):
                    size = graph.call_function(aten.sym_size.int, (node, dim))
                size.meta["val"] = found.shape[dim]
                return size
    return None


def _is(size: object, symbol: Any) -> bool:
    return isinstance(size, torch.SymInt) and bool(size.node.expr == symbol)


def _size_of(graph: fx.Graph, tensor: fx.Node, dim: int) -> fx.Node:
    """sym_size of an input, before everything that is computed: there is one, and all can
    use it.
    """
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for user in tensor.users:
        if user.target is aten.sym_size.int and user.args == (tensor, dim):
            if user is not first:
                first.prepend(user)
            return user
    with graph.inserting_before(first):
        node = graph.call_function(aten.sym_size.int, (tensor, dim))
    node.meta["val"] = tensor.meta["val"].shape[dim]
    return node


def _give_values(nodes: Iterable[fx.Node]) -> None:
    for node in nodes:
        if "val" not in node.meta:
            _give_values(node.all_input_nodes)
            args, kwargs = map_arg((node.args, node.kwargs), _value)
            assert callable(node.target)
            node.meta["val"] = node.target(*args, **kwargs)


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
