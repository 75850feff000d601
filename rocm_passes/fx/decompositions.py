"""High-level operators kept whole for matching, and the pass that decomposes those that nobody
matched.

Inductor's decomposition table breaks `native_layer_norm`, `native_group_norm`, `silu` … into many
nodes, and into different ones on the CPU and on a GPU. Kept whole they are one node everywhere.
What no idiom claims is decomposed again with Inductor's own table, so that it fuses as it would
have.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._inductor import compile_fx as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._prims_common import suggest_memory_format
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate, map_arg

from rocm_passes.fx.builder import Builder, fake_mode_of

aten = torch.ops.aten

Packet = torch._ops.OpOverloadPacket


class PreservingTable(dict[Any, Callable[..., Any]]):
    """Inductor's decomposition table without the kept operators.

    It pickles as its recipe and a digest of its operators' names: Inductor puts the table into its
    cache key, and the functions themselves do not pickle. The names count because the table depends
    on Inductor's options.
    """

    preserved: tuple[str, ...] = ()
    on_cpu: bool = False

    @cached_property
    def not_kept(self) -> list[str]:
        """The calls of preserved operators that were decomposed all the same, by their names."""
        return []

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256("\0".join(sorted(map(str, self))).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.preserved, self.on_cpu, self.digest)


@dataclass(frozen=True)
class TableOf:
    """Gives the table, as Inductor asks for it, and pickles."""

    table: PreservingTable

    def __call__(self) -> PreservingTable:
        return self.table


def key_cannot_be_made() -> bool:
    """torch 2.12 puts a local function that gives the table into its cache's key: no graph that is
    compiled with a table is cached. Later versions have a class for it, earlier ones no function.
    """
    keywords = getattr(inductor, "_CompileFxKwargs", None)
    asks = "get_decomp_fn" in getattr(keywords, "__annotations__", ())
    return asks and not hasattr(inductor, "_ConstantDecompTable")


def with_picklable_table(table: PreservingTable, inner: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor's compile of one graph, with a function that pickles in that one's place."""

    def compile_one(gm: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        return inner(gm, example_inputs, **how | {"get_decomp_fn": TableOf(table)})

    return compile_one


def _unpickled(preserved: tuple[str, ...], on_cpu: bool, digest: str) -> PreservingTable:
    table = table_preserving(preserved, on_cpu)
    if table.digest != digest:
        raise pickle.UnpicklingError(
            "the decomposition table was made under other options of Inductor"
        )
    return table


#: On a CPU eager lays these out as their input, as their decompositions do. Their fake
#: implementations say that they are contiguous, which is right on a GPU.
_LAID_AS_INPUT = (aten.replication_pad3d.default, aten.reflection_pad3d.default)


def table_preserving(preserved: Iterable[str], on_cpu: bool = False) -> PreservingTable:
    """The table that keeps the named ATen operators, e.g. "native_group_norm", in all their
    overloads.

    on_cpu: the graph runs on a CPU, where a pad of a channels-last video is not kept: a user would
    get other strides than eager's. It follows Inductor's config as it is at the call: make it under
    the options of the compile.
    """
    names = tuple(sorted(set(preserved)))
    packets = [getattr(aten, name) for name in names]
    whole = select_decomp_table()
    table = PreservingTable(whole)
    for packet in packets:
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    if on_cpu:
        pads = [op for op in _LAID_AS_INPUT if op.overloadpacket in packets and op in whole]
        table |= {op: _where_channels_last(op, whole[op], table.not_kept) for op in pads}
    table.preserved, table.on_cpu = names, on_cpu
    return table


def _where_channels_last(
    op: torch._ops.OpOverload, decomposition: Callable[..., Any], not_kept: list[str]
) -> Callable[..., Any]:
    def pad(x: torch.Tensor, *args: Any) -> Any:
        if suggest_memory_format(x) is torch.contiguous_format:
            return NotImplemented
        not_kept.append(op.overloadpacket.__name__)
        return decomposition(x, *args)

    return pad


def decompose_preserved(graph: fx.Graph, preserved: Iterable[str], joint: bool = False) -> int:
    """Decompose every remaining node of the kept operators. Returns how many there were.

    joint: a training graph before it is partitioned, which has views; a post-grad graph's views are
    reshapes by then.
    """
    nodes = nodes_of(graph, preserved)
    if not nodes:
        return 0
    fake_mode = fake_mode_of(graph)
    assert fake_mode is not None
    table = select_decomp_table()
    templates: dict[Any, fx.GraphModule] = {}
    done = 0
    for node in nodes:
        if node.target not in table:
            continue
        with graph.inserting_before(node):
            template = _template(node, table, templates, fake_mode)
            _inline(Builder(graph, fake_mode, node), node, template, joint)
        done += 1
    return done


def nodes_of(graph: fx.Graph, preserved: Iterable[str]) -> list[fx.Node]:
    """The calls of the named ATen operators, in all their overloads."""
    return [n for name in preserved for n in _nodes_of(graph, getattr(aten, name))]


def _nodes_of(graph: fx.Graph, packet: Packet) -> list[fx.Node]:
    overloads = [getattr(packet, name) for name in packet.overloads()]
    return [n for o in overloads for n in graph.find_nodes(op="call_function", target=o)]


def _template(
    node: fx.Node, table: Mapping[Any, Any], templates: dict[Any, fx.GraphModule], fake_mode: Any
) -> fx.GraphModule:
    """The traced decomposition of a call; calls alike in every shape, stride and literal share one
    trace.
    """
    inputs = node.all_input_nodes
    key = _signature(node)
    if key is not None and key in templates:
        return templates[key]

    def call(*values: Any) -> Any:
        env = dict(zip(inputs, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: env[n])
        result = table[node.target](*args, **kwargs)
        # A named tuple would be written into the graph as a call of its class.
        return tuple(result) if isinstance(result, tuple) else result

    with fake_mode, torch.no_grad():
        traced = make_fx(call, decomposition_table=dict(table))(*[n.meta["val"] for n in inputs])
    traced.graph.eliminate_dead_code()
    if key is not None:
        templates[key] = traced
    return traced


def _signature(node: fx.Node) -> Any:
    """What the trace depends on, or None where sizes are symbolic and a trace holds for one node
    only.
    """
    numbers = {n: i for i, n in enumerate(node.all_input_nodes)}
    tensors: list[Any] = []
    for n in numbers:
        v = n.meta["val"]
        if not isinstance(v, torch.Tensor):
            return None
        sizes = (*v.shape, *v.stride())
        if not all(isinstance(s, int) for s in sizes):
            return None
        tensors.append((v.shape, v.stride(), v.dtype, v.device))
    literals = map_aggregate(
        (node.args, node.kwargs), lambda a: ("arg", numbers[a]) if isinstance(a, fx.Node) else a
    )
    return node.target, tuple(tensors), repr(literals)


def _inline(b: Builder, node: fx.Node, template: fx.GraphModule, joint: bool) -> None:
    inputs = iter(node.all_input_nodes)
    env: dict[fx.Node, Any] = {}
    for t in template.graph.nodes:
        if t.op == "placeholder":
            env[t] = next(inputs)
        elif t.op == "call_function":
            args, kwargs = map_arg((t.args, t.kwargs), lambda n: env[n])
            # What it reads may come to lie otherwise, so that a view of it would fail. Inductor
            # lowers both alike, and had the graph's views replaced before the pass.
            late_view = t.target is aten.view.default and not joint
            target = aten.reshape.default if late_view else t.target
            env[t] = b(target, *args, **kwargs)
        elif t.op == "get_attr":
            env[t] = _constant(b, getattr(template, t.target))
        elif t.op == "output":
            _replace(b.graph, node, map_arg(t.args[0], lambda n: env[n]))


def _constant(b: Builder, found: torch.Tensor) -> Any:
    return b(
        aten.full.default, list(found.shape), found.item(), dtype=found.dtype, device=found.device
    )


def _replace(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):
            result = results[user.args[1]]
            if isinstance(result, fx.Node):
                user.replace_all_uses_with(result)
            graph.erase_node(user)
    graph.erase_node(node)
