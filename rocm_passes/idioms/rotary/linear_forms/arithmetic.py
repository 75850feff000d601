"""Signs, sums, and products with tables, real and complex."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary.linear_forms.value import (
    LANE_AXES,
    Factor,
    Known,
    Lane,
    Rule,
    Term,
    Value,
    has_factors_only,
    same,
    tail_axis,
    value_of,
)


def _neg(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    return None if value is None else value.map(_negated)


def _negated(lane: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(replace(t, sign=-t.sign) for t in lane)


def _sum_of(a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None or a.tail != b.tail or set(a.lanes) != set(b.lanes):
        return None
    # (x1 + x2) * t is not computed as x1 * t + x2 * t: where x1 and x2 cancel, the error would
    # grow.
    if not has_factors_only(a) or not has_factors_only(b):
        return None
    lanes: dict[tuple[int, ...], Lane] = {}
    for index, lane in a.lanes.items():
        other = b.lanes[index]
        if lane is None or other is None or len(lane) + len(other) > 2:
            return None
        lanes[index] = lane + other
    return replace(a, lanes=lanes)


def _add(node: fx.Node, known: Known) -> Value | None:
    if not n.alpha_is_one(node):
        return None
    return _sum_of(value_of(n.arg(node, 0), known), value_of(n.arg(node, 1), known))


def _sub(node: fx.Node, known: Known) -> Value | None:
    second = value_of(n.arg(node, 1), known)
    if second is None or not n.alpha_is_one(node):
        return None
    return _sum_of(value_of(n.arg(node, 0), known), second.map(_negated))


def _mul(node: fx.Node, known: Known) -> Value | None:
    return _product(n.arg(node, 0), n.arg(node, 1), known)


def _product(a: Any, b: Any, known: Known) -> Value | None:
    for x, table in ((a, b), (b, a)):
        value = value_of(x, known)
        if value is not None and isinstance(table, fx.Node) and table not in known:
            if value.tail == "z":
                return _complex_product(value, table)
            return _times(value, table)
    return None


def _times(value: Value, table: fx.Node) -> Value | None:
    """value * table, entry by entry; a table of size 2 along an axis of size 1 makes a new lane
    axis.
    """
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
        known = n.static_int(size)
        if axis == "1" and known == 2:
            tail, indexed = tail + "l", [*indexed, True]
        elif known == whole or (known == 1 and axis == "l"):
            tail, indexed = tail + axis, [*indexed, axis in LANE_AXES and known == whole]
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
        factor = Factor(
            table, tail, tuple(i if use else None for i, use in zip(pick, indexed, strict=True))
        )
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
        n.same_size(s, 1) or n.same_size(s, x)
        for s, x in zip(reversed(sizes), reversed(lead), strict=False)
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
    return _sum_of(same(node, known), _product(n.arg(node, 1), n.arg(node, 2), known))


def _sum(node: fx.Node, known: Known) -> Value | None:
    value, dims = same(node, known), n.arg(node, 1)
    if value is None or not dims or len(dims) != 1 or (len(node.args) > 2 and node.args[2]):
        return None
    axis = tail_axis(n.argument(node), value, dims[0])
    if axis is None or value.tail[axis] != "l":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    return _sum_of(value.pick(axis, 0, tail), value.pick(axis, 1, tail))


ARITHMETIC: dict[Any, Rule] = {
    aten.neg.default: _neg,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.addcmul.default: _addcmul,
    aten.sum.dim_IntList: _sum,
}
