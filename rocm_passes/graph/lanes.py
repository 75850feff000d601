"""Values of a graph as linear forms in the two channels of a pair: rotations whatever their spelling.

A tensor x [..., 2P] holds P pairs of channels, interleaved (2i, 2i+1) or half-split (i, i+P). Starting from
x, every node that is a sum of (plus or minus channel 0 or 1 of x) * (an entry of a table) is followed,
through views, casts, stacks, slices, scatters and complex numbers. Which node is a rotation can then be
seen from its value alone: both of its lanes hold a term of channel 0 and a term of channel 1.

The last axes of a value are named by a letter each:
    p  pairs            l  lane: the channel within the pair            1  size one
    f  interleaved channels [2P]      h  half-split channels [2P]       z  pairs as complex numbers
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from . import nodes as n
from .nodes import aten

LANE_AXES = "fhlz"
EMPTY = frozenset(
    {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}
)


@dataclass(frozen=True)
class Factor:
    """One entry per pair of a table: `axes` names its last axes, `index` picks the lane along each (or None).

    part: "re" or "im" of a complex table, else "".
    """

    table: fx.Node
    axes: str
    index: tuple[int | None, ...]
    part: str = ""


@dataclass(frozen=True)
class Term:
    """sign * x[channel] * factor."""

    sign: int
    channel: int
    factor: Factor | None = None


Lane = tuple[Term, ...] | None


@dataclass(frozen=True)
class Value:
    """A node as a linear form: `lanes` maps indices along its lane axes to terms; None where unwritten."""

    lead: tuple[Any, ...]
    pairs: int
    tail: str
    lanes: Mapping[tuple[int, ...], Lane]
    fp64: bool = False

    def map(self, change: Callable[[tuple[Term, ...]], tuple[Term, ...] | None]) -> Value | None:
        lanes: dict[tuple[int, ...], Lane] = {}
        for index, lane in self.lanes.items():
            changed = None if lane is None else change(lane)
            if changed is None:
                return None
            lanes[index] = changed
        return replace(self, lanes=lanes)

    def pick(self, axis: int, lane: int, tail: str) -> Value:
        """The value at one index of the lane axis `axis` of the tail."""
        at = _lane_position(self.tail, axis)
        lanes = {i[:at] + i[at + 1 :]: t for i, t in self.lanes.items() if i[at] == lane}
        return replace(self, tail=tail, lanes=lanes)

    @property
    def layout(self) -> str:
        """'f' or 'h': how the lanes lie in memory once flat; '' for a value of other axes."""
        return {"f": "f", "pl": "f", "h": "h", "lp": "h"}.get(self.tail, "")

    @property
    def complete(self) -> bool:
        """Do both lanes combine both channels, each with a table's entry?"""
        if not self.layout or set(self.lanes) != {(0,), (1,)}:
            return False
        return all(
            lane is not None and sorted(t.channel for t in lane) == [0, 1] and all(t.factor for t in lane)
            for lane in self.lanes.values()
        )


def _lane_position(tail: str, axis: int) -> int:
    return sum(c in LANE_AXES for c in tail[:axis])


def start(lead: tuple[Any, ...], pairs: int, tail: str) -> Value:
    """x itself."""
    return Value(lead, pairs, tail, {(c,): (Term(1, c),) for c in (0, 1)})


Evaluated = Value | tuple[Value, ...]


def follow(
    x: fx.Node, value: Value, order: Mapping[fx.Node, int]
) -> Iterator[tuple[fx.Node, Value, set[fx.Node]]]:
    """Every rotation of x: its node, its value, and the nodes between x and it."""
    known: dict[fx.Node, Evaluated] = {x: value}
    queue = [(order[u], u) for u in x.users if u in order]
    heapq.heapify(queue)
    seen: set[fx.Node] = set()
    while queue:
        _, node = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        found = evaluate(node, known)
        if found is None:
            continue
        known[node] = found
        if isinstance(found, Value) and found.complete:
            yield node, found, _between(node, x, known)
            continue
        for user in node.users:
            if user in order:
                heapq.heappush(queue, (order[user], user))


def _between(result: fx.Node, x: fx.Node, known: Mapping[fx.Node, Any]) -> set[fx.Node]:
    inside, stack = {result}, [result]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node is not x and node in known and node not in inside:
                inside.add(node)
                stack.append(node)
    return inside


def evaluate(node: fx.Node, known: Mapping[fx.Node, Evaluated]) -> Evaluated | None:
    """The node's value from its inputs', or None where it is no linear form of the channels."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is None:
        return None
    found = rule(node, known)
    result = n.dtype(node)
    if isinstance(found, Value) and result in (torch.float64, torch.complex128) and _has_factors(found):
        found = replace(found, fp64=True)
    return found


def _has_factors(value: Value) -> bool:
    return any(t.factor is not None for lane in value.lanes.values() for t in lane or ())


Known = Mapping[fx.Node, Evaluated]


def _value(arg: Any, known: Known) -> Value | None:
    found = known.get(arg) if isinstance(arg, fx.Node) else None
    return found if isinstance(found, Value) else None


def _tail_axis(node: fx.Node, value: Value, dim: Any) -> int | None:
    """A dim of the node as an axis of its value's tail, or None where it is a leading dim."""
    rank = len(n.shape(node))
    if not isinstance(dim, int) or not rank:
        return None
    axis = dim % rank - (rank - len(value.tail))
    return axis if axis >= 0 else None


def _same(node: fx.Node, known: Known) -> Value | None:
    return _value(n.arg(node, 0), known)


def _cast(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    if value is None or not n.is_cast(node):
        return None
    # A narrowing cast of x itself makes another x.
    return value if n.is_widening(node) or _has_factors(value) or value.tail == "z" else None


def _reshape(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    if value is None or value.tail == "z":
        return None
    sizes = n.shape(node)
    rank = len(value.lead)
    if len(sizes) <= rank or not n.same_shape(sizes[:rank], value.lead):
        return None
    core = value.tail.replace("1", "")
    p = value.pairs
    for axes in (core, {"f": "pl", "pl": "f", "h": "lp", "lp": "h"}.get(core)):
        if axes is None:
            continue
        tail = _name_axes(sizes[rank:], axes, [{"p": p, "l": 2}.get(a, 2 * p) for a in axes])
        if tail is not None:
            return replace(value, tail=tail)
    return None


def _name_axes(sizes: tuple[Any, ...], axes: str, expected: list[int]) -> str | None:
    tail, at = "", 0
    for size in sizes:
        if at < len(axes) and size == expected[at]:
            tail += axes[at]
            at += 1
        elif size == 1:
            tail += "1"
        else:
            return None
    return tail if at == len(axes) else None


def _unsqueeze(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    if value is None or value.tail == "z":
        return None
    rank = len(n.shape(node))
    axis = n.arg(node, 1) % rank - (rank - len(value.tail) - 1)
    return replace(value, tail=value.tail[:axis] + "1" + value.tail[axis:]) if axis >= 0 else None


def _slice(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    if value is None:
        return None
    lane = _lane_of_slice(node, n.argument(node), value, node.args[1:])
    if lane is None:
        return None
    axis, index = lane
    becomes = "1" if value.tail[axis] == "l" else "p"
    return value.pick(axis, index, value.tail[:axis] + becomes + value.tail[axis + 1 :])


def slice_bounds(size: Any, args: tuple[Any, ...]) -> tuple[Any, Any, Any, int]:
    """(dim, start, end, step) of the arguments of aten.slice or slice_scatter behind the tensors."""
    dim = args[0] if args else 0
    begin = args[1] if len(args) > 1 and args[1] is not None else 0
    end = args[2] if len(args) > 2 and args[2] is not None else size
    step = args[3] if len(args) > 3 else 1
    if isinstance(size, int) and isinstance(begin, int) and isinstance(end, int):
        begin, end, _ = slice(begin, end).indices(size)
    return dim, begin, end, step


def _lane_of_slice(
    node: fx.Node, sliced: fx.Node, value: Value, args: tuple[Any, ...]
) -> tuple[int, int] | None:
    """(axis of the tail, lane) that the slice arguments pick out of a value."""
    axis = _tail_axis(sliced, value, args[0] if args else 0)
    if axis is None:
        return None
    size = n.shape(sliced)[len(n.shape(sliced)) - len(value.tail) + axis]
    _, begin, end, step = slice_bounds(size, args)
    lane = lane_of_bounds(value.tail[axis], value.pairs, begin, end, step)
    return None if lane is None else (axis, lane)


def lane_of_bounds(tag: str, pairs: int, begin: Any, end: Any, step: Any) -> int | None:
    if tag == "f" and step == 2 and begin in (0, 1) and end == 2 * pairs:
        return int(begin)
    if tag == "h" and step == 1 and (begin, end) in ((0, pairs), (pairs, 2 * pairs)):
        return 0 if begin == 0 else 1
    if tag == "l" and step == 1 and (begin, end) in ((0, 1), (1, 2)):
        return int(begin)
    return None


def _select(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    axis = None if value is None else _tail_axis(n.argument(node), value, n.arg(node, 1))
    if value is None or axis is None or value.tail[axis] not in "l1":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    if value.tail[axis] == "1":
        return replace(value, tail=tail)
    return value.pick(axis, n.arg(node, 2) % 2, tail)


def _unbind(node: fx.Node, known: Known) -> tuple[Value, ...] | None:
    value = _same(node, known)
    axis = None if value is None else _tail_axis(n.argument(node), value, _optional(node, 1, 0))
    if value is None or axis is None or value.tail[axis] != "l":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    return value.pick(axis, 0, tail), value.pick(axis, 1, tail)


def _optional(node: fx.Node, index: int, default: Any) -> Any:
    return n.arg(node, index) if len(node.args) > index else default


def _split(node: fx.Node, known: Known) -> tuple[Value, ...] | None:
    value = _same(node, known)
    axis = None if value is None else _tail_axis(n.argument(node), value, _optional(node, 2, 0))
    if value is None or axis is None or value.tail[axis] not in "hl":
        return None
    width, becomes = (value.pairs, "p") if value.tail[axis] == "h" else (1, "1")
    if n.arg(node, 1) != width and n.arg(node, 1) != [width, width]:
        return None
    tail = value.tail[:axis] + becomes + value.tail[axis + 1 :]
    return value.pick(axis, 0, tail), value.pick(axis, 1, tail)


def _getitem(node: fx.Node, known: Known) -> Value | None:
    found = known.get(n.argument(node))
    index = n.arg(node, 1)
    return found[index] if isinstance(found, tuple) and isinstance(index, int) else None


def _neg(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    return None if value is None else value.map(_negated)


def _negated(lane: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(replace(t, sign=-t.sign) for t in lane)


def _sum_of(a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None or a.tail != b.tail or set(a.lanes) != set(b.lanes):
        return None
    lanes: dict[tuple[int, ...], Lane] = {}
    for index, lane in a.lanes.items():
        other = b.lanes[index]
        if lane is None or other is None or len(lane) + len(other) > 2:
            return None
        lanes[index] = lane + other
    return replace(a, lanes=lanes, fp64=a.fp64 or b.fp64)


def _add(node: fx.Node, known: Known) -> Value | None:
    if not n.alpha_is_one(node):
        return None
    return _sum_of(_value(n.arg(node, 0), known), _value(n.arg(node, 1), known))


def _sub(node: fx.Node, known: Known) -> Value | None:
    second = _value(n.arg(node, 1), known)
    if second is None or not n.alpha_is_one(node):
        return None
    return _sum_of(_value(n.arg(node, 0), known), second.map(_negated))


def _mul(node: fx.Node, known: Known) -> Value | None:
    return _product(n.arg(node, 0), n.arg(node, 1), known)


def _product(a: Any, b: Any, known: Known) -> Value | None:
    for x, table in ((a, b), (b, a)):
        value = _value(x, known)
        if value is not None and isinstance(table, fx.Node) and table not in known:
            if value.tail == "z":
                return _complex_product(value, table)
            return _times(value, table)
    return None


def _times(value: Value, table: fx.Node) -> Value | None:
    """value * table, entry by entry; a table of size 2 along an axis of size 1 makes a new lane axis."""
    sign, table = _plain_table(table)
    found = n.value(table)
    if found is None or not found.dtype.is_floating_point:
        return None
    depth = len(value.tail)
    sizes = (1,) * (depth - found.dim()) + tuple(found.shape)[max(0, found.dim() - depth) :]
    if not _covers(tuple(found.shape)[: max(0, found.dim() - depth)], value.lead):
        return None
    tail, indexed = "", list[bool]()
    for axis, size in zip(value.tail, sizes, strict=True):
        whole = {"p": value.pairs, "l": 2, "1": 1}.get(axis, 2 * value.pairs)
        if axis == "1" and size == 2:
            tail, indexed = tail + "l", [*indexed, True]
        elif size == whole or (size == 1 and axis == "l"):
            tail, indexed = tail + axis, [*indexed, axis in LANE_AXES and size == whole]
        else:
            return None
    lanes: dict[tuple[int, ...], Lane] = {}
    for index in _indices(tail):
        source = tuple(i for i, old in zip(index, _old_axes(value.tail, tail), strict=True) if old)
        lane = value.lanes.get(source)
        if lane is None or any(t.factor is not None for t in lane):
            return None
        by_axis = iter(index)
        pick = tuple(next(by_axis) if a in LANE_AXES else None for a in tail)
        factor = Factor(table, tail, tuple(i if use else None for i, use in zip(pick, indexed, strict=True)))
        lanes[index] = tuple(replace(t, sign=sign * t.sign, factor=factor) for t in lane)
    return replace(value, tail=tail, lanes=lanes)


def _indices(tail: str) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for axis in tail:
        if axis in LANE_AXES:
            found = [(*i, lane) for i in found for lane in (0, 1)]
    return found


def _old_axes(before: str, after: str) -> list[bool]:
    """For each lane axis of `after`, whether `before` has it too."""
    return [b in LANE_AXES for b, a in zip(before, after, strict=True) if a in LANE_AXES]


def _covers(sizes: tuple[Any, ...], lead: tuple[Any, ...]) -> bool:
    """Does a table of these leading sizes broadcast to x's without widening x?"""
    if len(sizes) > len(lead):
        return all(n.same_size(s, 1) for s in sizes[: len(sizes) - len(lead)]) and _covers(
            sizes[len(sizes) - len(lead) :], lead
        )
    return all(
        n.same_size(s, 1) or n.same_size(s, x) for s, x in zip(reversed(sizes), reversed(lead), strict=False)
    )


def _plain_table(table: fx.Node) -> tuple[int, fx.Node]:
    """The table behind negations and lossless casts, and its sign."""
    sign = 1
    while True:
        if n.is_call(table, aten.neg.default):
            sign, table = -sign, n.argument(table)
        elif n.is_widening(table):
            table = n.argument(table)
        else:
            return sign, table


def _complex_product(value: Value, table: fx.Node) -> Value | None:
    found = n.value(table)
    if (
        found is None
        or not found.dtype.is_complex
        or any(t.factor is not None for lane in value.lanes.values() for t in lane or ())
    ):
        return None
    sizes = tuple(found.shape)
    if not sizes or not n.same_size(sizes[-1], value.pairs) or not _covers(sizes[:-1], value.lead):
        return None
    re, im = (Factor(table, "p", (None,), part) for part in ("re", "im"))
    real, imaginary = value.lanes[(0,)], value.lanes[(1,)]
    if real is None or imaginary is None or len(real) != 1 or len(imaginary) != 1:
        return None
    a, b = real[0], imaginary[0]
    lanes: dict[tuple[int, ...], Lane] = {
        (0,): (replace(a, factor=re), replace(b, sign=-b.sign, factor=im)),
        (1,): (replace(a, factor=im), replace(b, factor=re)),
    }
    return replace(value, lanes=lanes)


def _addcmul(node: fx.Node, known: Known) -> Value | None:
    if node.kwargs.get("value", 1) != 1:
        return None
    return _sum_of(_same(node, known), _product(n.arg(node, 1), n.arg(node, 2), known))


def _cat(node: fx.Node, known: Known) -> Value | None:
    parts = [_value(p, known) for p in n.arg(node, 0)]
    if len(parts) != 2 or parts[0] is None or parts[1] is None or parts[0].tail != parts[1].tail:
        return None
    first, second = parts[0], parts[1]
    axis = _tail_axis(n.arg(node, 0)[0], first, _optional(node, 1, 0))
    becomes = {"1": "l", "p": "h"}.get(first.tail[axis]) if axis is not None else None
    if axis is None or becomes is None:
        return None
    at = _lane_position(first.tail, axis)
    lanes = {
        (*i[:at], number, *i[at:]): lane
        for number, part in enumerate((first, second))
        for i, lane in part.lanes.items()
    }
    tail = first.tail[:axis] + becomes + first.tail[axis + 1 :]
    return replace(first, tail=tail, lanes=lanes, fp64=first.fp64 or second.fp64)


def _copy(node: fx.Node, known: Known) -> Value | None:
    """aten.copy(destination, source): the source in the destination's dtype."""
    return _value(n.arg(node, 1), known)


def _slice_scatter(node: fx.Node, known: Known) -> Value | None:
    base, source = n.argument(node), _value(n.arg(node, 1), known)
    if source is None:
        return None
    into = _value(base, known) or _unwritten(base, source, node.args[2:])
    if into is None:
        return None
    lane = _lane_of_slice(node, base, into, node.args[2:])
    if lane is None:
        return None
    axis, number = lane
    becomes = "1" if into.tail[axis] == "l" else "p"
    if source.tail != into.tail[:axis] + becomes + into.tail[axis + 1 :]:
        return None
    at = _lane_position(into.tail, axis)
    written = {(*i[:at], number, *i[at:]): terms for i, terms in source.lanes.items()}
    return replace(into, lanes={**into.lanes, **written}, fp64=into.fp64 or source.fp64)


def _unwritten(base: fx.Node, like: Value, args: tuple[Any, ...]) -> Value | None:
    """An empty tensor that the two lanes are about to be written into."""
    sizes, source = n.shape(base), base
    while source.op == "call_function" and source.target in n.VIEWS:
        source = n.argument(source)
    if not (source.op == "call_function" and source.target in EMPTY) or not sizes:
        return None
    if not n.same_shape(sizes[:-1], like.lead) or sizes[-1] != 2 * like.pairs:
        return None
    _, _, _, step = slice_bounds(sizes[-1], args)
    return replace(like, tail="f" if step == 2 else "h", lanes={(0,): None, (1,): None})


def _sum(node: fx.Node, known: Known) -> Value | None:
    value, dims = _same(node, known), n.arg(node, 1)
    if value is None or len(dims) != 1 or (len(node.args) > 2 and node.args[2]):
        return None
    axis = _tail_axis(n.argument(node), value, dims[0])
    if axis is None or value.tail[axis] != "l":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    return _sum_of(value.pick(axis, 0, tail), value.pick(axis, 1, tail))


def _as_complex(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    return replace(value, tail="z") if value is not None and value.tail == "pl" else None


def _as_real(node: fx.Node, known: Known) -> Value | None:
    value = _same(node, known)
    return replace(value, tail="pl") if value is not None and value.tail == "z" else None


RULES: dict[Any, Callable[[fx.Node, Known], Evaluated | None]] = {
    torch.ops.prims.convert_element_type.default: _cast,
    aten._to_copy.default: _cast,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.unsqueeze.default: _unsqueeze,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    operator.getitem: _getitem,
    aten.neg.default: _neg,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.addcmul.default: _addcmul,
    aten.cat.default: _cat,
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.sum.dim_IntList: _sum,
    aten.view_as_complex.default: _as_complex,
    aten.view_as_real.default: _as_real,
}
