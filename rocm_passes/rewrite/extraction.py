"""The two programs of a rewritten site, read off the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from rocm_passes.fx import nodes as n
from rocm_passes.fx.aliasing import root_of
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.strides import reader_of_strides
from rocm_passes.ops.attention import SDPA_KERNELS
from rocm_passes.rewrite.program import Input, Program, Ref, Result, Step, Unverifiable
from rocm_passes.rewrite.rewriter import Applied
from rocm_passes.rewrite.sources import Sources

#: How many nodes in front of a site are computed from their sources, where its two programs read
#: different values.
EXPANSIONS = 256
#: They cost more than the site: what they compute is drawn.
HEAVY = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.convolution.default,
        *SDPA_KERNELS,
    }
)


def of_site(applied: Applied, sources: Sources) -> Program:
    """The programs of a rewrite that was placed, while the nodes that it replaced are still in the
    graph.
    """
    return _Extraction(applied, sources).program()


class _Extraction:
    def __init__(self, applied: Applied, sources: Sources) -> None:
        self._applied = applied
        self._sources = sources
        self._graph = applied.match.anchor.graph
        self._order = {node: i for i, node in enumerate(self._graph.nodes)}
        self._inserted = set(applied.builder.inserted)
        self._inside = set(map(sources.of, (*applied.match.nodes, *applied.match.outputs)))

    def program(self) -> Program:
        inputs = self._frontier()
        outputs = tuple(map(self._old, self._applied.match.outputs))
        original = self._steps(outputs, inputs, self._old)
        replacement = self._steps(self._applied.results, inputs, self._new)
        read = [node for node in self._order if node in inputs]
        tensors = [v for node in read if isinstance(v := node.meta.get("val"), torch.Tensor)]
        if not tensors:
            raise Unverifiable("no tensor enters it")
        constants = {
            node.name: _attribute(self._graph, node)
            for node in {**dict.fromkeys(original), **dict.fromkeys(replacement)}
            if node.op == "get_attr"
        }
        return Program(
            inputs=tuple(_input(node) for node in read),
            constants=constants,
            original=tuple(_step(node, self._old) for node in original if node.op != "get_attr"),
            replacement=tuple(
                _step(node, self._new) for node in replacement if node.op != "get_attr"
            ),
            outputs=tuple(node.name for node in outputs),
            results=tuple(node.name for node in self._applied.results),
            expected=tuple(map(_expected, self._applied.match.outputs, self._applied.results)),
            bytes=sum(_bytes(node, 2) for node in (*read, *original))
            + sum(_bytes(x, 1) for x in replacement),
            device=tensors[0].device,
        )

    def _old(self, node: fx.Node) -> fx.Node:
        """Inner readers of an output read its replacement by now."""
        return self._sources.of(node)

    def _new(self, node: fx.Node) -> fx.Node:
        return node if node in self._inserted else self._sources.of(node)

    def _frontier(self) -> set[fx.Node]:
        """The values that enter, such that what one program computes from a value the other does
        not draw.
        """
        ours = self._entering(self._inside, self._old)
        theirs = self._entering(self._inserted, self._new)
        free: set[fx.Node] = set()
        for _ in range(EXPANSIONS):
            node = self._to_expand(ours, theirs, free)
            if node is None:
                return ours | theirs
            if not _can_expand(node):
                free.add(node)
                continue
            for side in (ours, theirs):
                if node in side:
                    side.remove(node)
                    side.update(map(self._sources.of, _maker(node).all_input_nodes))
        raise Unverifiable(
            "its original and its replacement read values with no common source within "
            f"{EXPANSIONS} nodes"
        )

    def _entering(self, nodes: set[fx.Node], of: Callable[[fx.Node], fx.Node]) -> set[fx.Node]:
        return {of(i) for node in nodes for i in node.all_input_nodes} - nodes

    def _to_expand(
        self, ours: set[fx.Node], theirs: set[fx.Node], free: set[fx.Node]
    ) -> fx.Node | None:
        """The last node that only one program reads, that another entering value decides, or that
        is an index.
        """
        both = ours | theirs
        wanted = (ours ^ theirs) | {x for x in both if _follows(x, both) or _is_integer(x)}
        return max(wanted - free, key=lambda node: self._order.get(node, -1), default=None)

    def _steps(
        self, ends: Sequence[fx.Node], inputs: set[fx.Node], of: Callable[[fx.Node], fx.Node]
    ) -> list[fx.Node]:
        """What computes `ends` from the inputs, each node behind what it reads."""
        done: dict[fx.Node, None] = {}
        stack = [(node, False) for node in reversed(ends)]
        while stack:
            node, ready = stack.pop()
            if node in inputs or node in done:
                continue
            if ready or node.op == "get_attr":
                done[node] = None
                continue
            if node.op != "call_function":
                raise Unverifiable(f"{node.name} is no call of a function")
            stack.append((node, True))
            stack.extend((of(i), False) for i in reversed(node.all_input_nodes))
        return list(done)


def _can_expand(node: fx.Node) -> bool:
    made = _maker(node)
    if n.value(node) is None or made.op != "call_function" or made.target in HEAVY:
        return False
    # An operator of this package that is no site's result converts values for several sites.
    return getattr(made.target, "namespace", "") in (
        "aten",
        "prims",
        "inductor_prims",
        "rocm_passes",
    )


def _maker(node: fx.Node) -> fx.Node:
    """The call that made the value: of one of several results, the call that made them all."""
    while n.is_call(node, operator.getitem):
        node = n.argument(node)
    return node


def _follows(node: fx.Node, others: set[fx.Node]) -> bool:
    """Is it a view or a cast of another of these?"""
    source: Any = node
    while isinstance(source, fx.Node) and (source.target in n.VIEWS or n.is_cast(source)):
        source = source.args[0]
        if source in others:
            return True
    return False


def _is_integer(node: fx.Node) -> bool:
    """An index, whose values cannot be drawn."""
    dtype = n.dtype(node)
    return (
        dtype is not None
        and not dtype.is_floating_point
        and not dtype.is_complex
        and _can_expand(node)
    )


def _attribute(graph: fx.Graph, node: fx.Node) -> torch.Tensor:
    found: Any = graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    if not isinstance(found, torch.Tensor):
        raise Unverifiable(f"the constant {node.target} is not a tensor")
    return found


def _input(node: fx.Node) -> Input:
    found = node.meta.get("val")
    if isinstance(found, torch.Tensor):
        return Input(node.name, _ints(found.shape), _ints(found.stride()), found.dtype)
    if isinstance(found, (int, float, torch.SymInt)):
        return Input(node.name, number=found if isinstance(found, float) else _int(found))
    raise Unverifiable(f"{node.name}, which enters it, is neither a tensor nor a number")


def _int(size: Any) -> int:
    found = n.example_size(size)
    if found is None:
        raise Unverifiable(f"the size {size} is not known before the graph runs")
    return found


def _ints(sizes: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(_int, sizes))


def _step(node: fx.Node, of: Callable[[fx.Node], fx.Node]) -> Step:
    def plain(found: Any) -> Any:
        if isinstance(found, fx.Node):
            return Ref(of(found).name)
        if isinstance(found, (list, tuple)):
            return [plain(each) for each in found]
        return _int(found) if isinstance(found, torch.SymInt) else found

    kwargs = {name: plain(each) for name, each in node.kwargs.items()}
    return Step(node.name, node.target, tuple(plain(each) for each in node.args), kwargs)


def _expected(old: fx.Node, new: fx.Node) -> Result:
    reader = reader_of_strides(new)
    ours = getattr(_maker(root_of(new)).target, "namespace", "") == "rocm_passes"
    like = new if reader is None else old
    strides = _ints(n.tensor(like).stride()) if ours or reader is not None else None
    return Result(n.tensor(old).dtype, strides, not ours)


def _bytes(node: fx.Node, copies: int) -> int:
    """Of a node's value, and as many eight-byte copies of it as the run in float64 makes."""
    tensors = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    return sum(_numel(v) * (v.element_size() + 8 * (copies - 1)) for v in tensors)


def _numel(value: torch.Tensor) -> int:
    count = 1
    for size in value.shape:
        count *= _int(size)
    return count
