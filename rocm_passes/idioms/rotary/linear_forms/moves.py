"""What moves channels and computes nothing: casts, views, slices, stacks, writes into slices,
complex views.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary.linear_forms.value import (
    Known,
    Rule,
    Value,
    lane_position,
    optional,
    same,
    tail_axis,
    value_of,
)

EMPTY = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.empty_strided.default,
    }
)


def _cast(node: fx.Node, known: Known) -> Value | None:
    return same(node, known) if n.is_cast(node) else None


def _reshape(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
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
        known = n.static_int(size)
        if at < len(axes) and known == expected[at]:
            tail += axes[at]
            at += 1
        elif known == 1:
            tail += "1"
        else:
            return None
    return tail if at == len(axes) else None


def _unsqueeze(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    if value is None or value.tail == "z":
        return None
    rank = len(n.shape(node))
    axis = n.arg(node, 1) % rank - (rank - len(value.tail) - 1)
    return replace(value, tail=value.tail[:axis] + "1" + value.tail[axis:]) if axis >= 0 else None


def _slice(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    if value is None:
        return None
    lane = _lane_of_slice(node, n.argument(node), value, node.args[1:])
    if lane is None:
        return None
    axis, index = lane
    becomes = "1" if value.tail[axis] == "l" else "p"
    return value.pick(axis, index, value.tail[:axis] + becomes + value.tail[axis + 1 :])


def _lane_of_slice(
    node: fx.Node, sliced: fx.Node, value: Value, args: tuple[Any, ...]
) -> tuple[int, int] | None:
    """(axis of the tail, lane) that the slice arguments pick out of a value."""
    axis = tail_axis(sliced, value, args[0] if args else 0)
    if axis is None:
        return None
    size = n.static_int(n.shape(sliced)[len(n.shape(sliced)) - len(value.tail) + axis])
    _, begin, end, step = n.slice_bounds(size, args)
    lane = lane_of_bounds(value.tail[axis], value.pairs, begin, end, step)
    return None if lane is None else (axis, lane)


def lane_of_bounds(tag: str, pairs: int, begin: Any, end: Any, step: Any) -> int | None:
    if not isinstance(begin, int) or not isinstance(end, int):
        return None
    if tag == "f" and step == 2 and begin in (0, 1) and end == 2 * pairs:
        return begin
    if tag == "h" and step == 1 and (begin, end) in ((0, pairs), (pairs, 2 * pairs)):
        return 0 if begin == 0 else 1
    if tag == "l" and step == 1 and (begin, end) in ((0, 1), (1, 2)):
        return begin
    return None


def _select(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    axis = None if value is None else tail_axis(n.argument(node), value, n.arg(node, 1))
    if value is None or axis is None or value.tail[axis] not in "l1":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    if value.tail[axis] == "1":
        return replace(value, tail=tail)
    index = n.static_int(n.arg(node, 2))
    return None if index is None else value.pick(axis, index % 2, tail)


def _unbind(node: fx.Node, known: Known) -> tuple[Value, ...] | None:
    value = same(node, known)
    axis = None if value is None else tail_axis(n.argument(node), value, optional(node, 1, 0))
    if value is None or axis is None or value.tail[axis] != "l":
        return None
    tail = value.tail[:axis] + value.tail[axis + 1 :]
    return value.pick(axis, 0, tail), value.pick(axis, 1, tail)


def _split(node: fx.Node, known: Known) -> tuple[Value, ...] | None:
    value = same(node, known)
    axis = None if value is None else tail_axis(n.argument(node), value, optional(node, 2, 0))
    if value is None or axis is None or value.tail[axis] not in "hl":
        return None
    width, becomes = (value.pairs, "p") if value.tail[axis] == "h" else (1, "1")
    sizes = n.arg(node, 1)
    if [n.static_int(s) for s in (sizes if isinstance(sizes, (list, tuple)) else [sizes])] not in (
        [width],
        [width, width],
    ):
        return None
    tail = value.tail[:axis] + becomes + value.tail[axis + 1 :]
    return value.pick(axis, 0, tail), value.pick(axis, 1, tail)


def _getitem(node: fx.Node, known: Known) -> Value | None:
    found = known.get(n.argument(node))
    index = n.arg(node, 1)
    return found[index] if isinstance(found, tuple) and isinstance(index, int) else None


def _cat(node: fx.Node, known: Known) -> Value | None:
    parts = [value_of(p, known) for p in n.arg(node, 0)]
    if len(parts) != 2 or parts[0] is None or parts[1] is None or parts[0].tail != parts[1].tail:
        return None
    first, second = parts[0], parts[1]
    axis = tail_axis(n.arg(node, 0)[0], first, optional(node, 1, 0))
    becomes = {"1": "l", "p": "h"}.get(first.tail[axis]) if axis is not None else None
    if axis is None or becomes is None:
        return None
    at = lane_position(first.tail, axis)
    lanes = {
        (*i[:at], number, *i[at:]): lane
        for number, part in enumerate((first, second))
        for i, lane in part.lanes.items()
    }
    tail = first.tail[:axis] + becomes + first.tail[axis + 1 :]
    return replace(first, tail=tail, lanes=lanes)


def _copy(node: fx.Node, known: Known) -> Value | None:
    """aten.copy(destination, source): the source in the destination's dtype, here of its very
    shape.
    """
    source = value_of(n.arg(node, 1), known)
    return source if n.same_shape(n.shape(node), n.shape(n.arg(node, 1))) else None


def _slice_scatter(node: fx.Node, known: Known) -> Value | None:
    base, source = n.argument(node), value_of(n.arg(node, 1), known)
    if source is None:
        return None
    into = value_of(base, known) or _unwritten(base, source, node.args[2:])
    if into is None:
        return None
    lane = _lane_of_slice(node, base, into, node.args[2:])
    if lane is None:
        return None
    axis, number = lane
    becomes = "1" if into.tail[axis] == "l" else "p"
    if source.tail != into.tail[:axis] + becomes + into.tail[axis + 1 :]:
        return None
    at = lane_position(into.tail, axis)
    written = {(*i[:at], number, *i[at:]): terms for i, terms in source.lanes.items()}
    return replace(into, lanes={**into.lanes, **written})


def _unwritten(base: fx.Node, like: Value, args: tuple[Any, ...]) -> Value | None:
    """An empty tensor that the two lanes are about to be written into."""
    sizes, source = n.shape(base), base
    while source.op == "call_function" and source.target in n.VIEWS:
        source = n.argument(source)
    if not (source.op == "call_function" and source.target in EMPTY) or not sizes:
        return None
    if not n.same_shape(sizes[:-1], like.lead) or n.static_int(sizes[-1]) != 2 * like.pairs:
        return None
    _, _, _, step = n.slice_bounds(2 * like.pairs, args)
    return replace(like, tail="f" if step == 2 else "h", lanes={(0,): None, (1,): None})


def _as_complex(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    return replace(value, tail="z") if value is not None and value.tail == "pl" else None


def _as_real(node: fx.Node, known: Known) -> Value | None:
    value = same(node, known)
    return replace(value, tail="pl") if value is not None and value.tail == "z" else None


MOVES: dict[Any, Rule] = {
    torch.ops.prims.convert_element_type.default: _cast,
    aten._to_copy.default: _cast,
    aten.clone.default: same,
    aten.alias.default: same,
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
    aten.cat.default: _cat,
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.view_as_complex.default: _as_complex,
    aten.view_as_real.default: _as_real,
}
