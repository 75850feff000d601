"""Collectives in a graph, and what runs beside them.

    q = rotary(q0)
    s = all_to_all_single(q)      in flight from here
    k = rotary(k0)                runs beside it
    w = wait_tensor(s)            to here

A site that holds q and k would start the collective behind both. A site that holds k and what is
computed from w would compute k behind the wait. Either takes from the collective what runs beside
it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from torch import fx
from torch._inductor import config as inductor_config

from rocm_passes.fx import nodes as n

#: What Inductor computes in a kernel of its own, wherever its reader stands. Pointwise code it
#: computes where it is read, so behind the wait in any case.
_OWN_KERNEL = frozenset(
    {
        *("mean", "sum", "var", "var_mean", "amax", "bmm", "mm", "addmm", "convolution"),
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "implicit_gemm_conv"),
    }
)
#: Of torch.distributed: functional collectives, those with gradients, DTensor's own.
_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "_dtensor"})
_WAIT = "wait_tensor"


def namespace(node: fx.Node) -> str:
    return str(getattr(node.target, "namespace", ""))


def is_collective(node: fx.Node) -> bool:
    """Does the node start a collective?"""
    return node.op == "call_function" and namespace(node) in _NAMESPACES and not is_wait(node)


def is_wait(node: fx.Node) -> bool:
    if node.op != "call_function" or namespace(node) not in _NAMESPACES:
        return False
    return str(getattr(node.target, "_opname", "")) == _WAIT


def reordered() -> bool:
    """Will Inductor move collectives and waits, so that the graph's order says little?"""
    overlap = getattr(inductor_config, "aten_distributed_optimizations", None)
    return bool(
        inductor_config.reorder_for_compute_comm_overlap
        or getattr(overlap, "enable_overlap_scheduling", False)
    )


def collectives(graph: fx.Graph, _: object = None) -> Collectives:
    """Of the graph, as it stands (a reader for `Context.read_once`)."""
    return Collectives(graph, reordered())


class Collectives:
    """The collectives of a graph, which must not change while this is used.

    moved: Inductor will move collectives and waits.
    """

    def __init__(self, graph: fx.Graph, moved: bool) -> None:
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._moved = moved
        found = [node for node in graph.nodes if is_collective(node)]
        self._starts = {node: 1 << i for i, node in enumerate(found)}
        self._nodes = found
        #: Of a node: the collectives that it waits for, and those that wait for it, as bits.
        self._before: dict[fx.Node, int] = {}
        self._behind: dict[fx.Node, int] = {}
        self._waits: dict[int, fx.Node] = {}
        if found:
            self._read(graph)

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def obstacle(
        self, nodes: Collection[fx.Node], inputs: Iterable[fx.Node], outputs: Iterable[fx.Node]
    ) -> str | None:
        """Why computing the nodes at once takes from a collective what runs beside it, or None."""
        if not self._nodes:
            return None
        read, found = list(inputs), list(outputs)
        least = max((_elements(o) for o in found), default=0) / 2
        large = [m for m in (*nodes, *read) if _elements(m) >= least and m.op == "call_function"]
        return self._delayed_start(large, found) or self._crossed_wait(nodes, read)

    def _delayed_start(self, large: list[fx.Node], outputs: list[fx.Node]) -> str | None:
        started = 0
        for output in outputs:
            started |= self._behind[output]
        for bit in _bits(started):
            start = self._nodes[bit.bit_length() - 1]
            late = [m for m in large if not self._behind[m] & bit]
            if any(self._moved or self._order[m] > self._order[start] for m in late):
                return (
                    f"the collective {start.name} starts with a part of it and runs beside the "
                    "rest: it would start behind both"
                )
        return None

    def _crossed_wait(self, nodes: Collection[fx.Node], read: list[fx.Node]) -> str | None:
        kernels = [m for m in nodes if getattr(m.target, "_opname", "") in _OWN_KERNEL]
        needed = 0
        for node in (*nodes, *read):
            needed |= self._before[node]
        for bit in _bits(needed):
            start, wait = self._nodes[bit.bit_length() - 1], self._waits.get(bit)
            if wait is None:
                continue
            beside = range(self._order[start], self._order[wait])
            early = [m for m in kernels if not self._before[m] & bit]
            if any(self._moved or self._order[m] in beside for m in early):
                return (
                    f"a part of it runs beside the collective {start.name}, and would move behind "
                    "the wait for it"
                )
        return None

    def _read(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            bits = self._starts.get(node, 0)
            for source in node.all_input_nodes:
                bits |= self._before[source]
            self._before[node] = bits
            if is_wait(node):
                for source in node.all_input_nodes:
                    for bit in _bits(self._own(source)):
                        self._waits.setdefault(bit, node)
        for node in reversed(graph.nodes):
            bits = 0
            for user in node.users:
                bits |= self._behind[user] | self._starts.get(user, 0)
            self._behind[node] = bits

    def _own(self, node: fx.Node) -> int:
        """The collective that a wait is for: its input, or what that is one result or view of."""
        while node not in self._starts and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        return self._starts.get(node, 0)


def _bits(mask: int) -> Iterable[int]:
    while mask:
        yield mask & -mask
        mask &= mask - 1


def _elements(node: fx.Node) -> float:
    """A value's elements; of a symbolic size as many as may be, of what is no tensor none."""
    if n.value(node) is None:
        return 0
    sizes = n.shape(node)
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else math.inf
