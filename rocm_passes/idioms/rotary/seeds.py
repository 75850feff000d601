"""Where a rotation may begin: tensors that something splits into two channels per pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary import linear_forms as lanes
from rocm_passes.idioms.rotary.dims import RESHAPES

#: A node x, its value, and the shape that it is viewed in first, or None.
Seed = tuple[fx.Node, lanes.Value, tuple[Any, ...] | None]


def seeds(graph: fx.Graph) -> Iterator[Seed]:
    seen: set[tuple[fx.Node, str]] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in RESHAPES:
            found = _reshape_seeds(node)
        elif node.target is aten.slice.Tensor or node.target is aten.split.Tensor:
            found = _slice_seeds(node)
        else:
            continue
        for seed in found:
            if (seed[0], seed[1].tail) not in seen:
                seen.add((seed[0], seed[1].tail))
                yield seed


def _reshape_seeds(node: fx.Node) -> Iterator[Seed]:
    """[..., 2P] reshaped to [..., P, 2], [..., P, 1, 2] or [..., 2, P]; of [2, 2] it may be
    either.
    """
    sizes = n.shape(node)
    if len(sizes) < 3 or not _floats(node):
        return
    source = n.through_widening(n.argument(node))
    for axes, flat in (("pl", "f"), ("p1l", "f"), ("lp", "h")):
        if len(sizes) <= len(axes):
            continue
        lead, tail = sizes[: len(sizes) - len(axes)], sizes[len(sizes) - len(axes) :]
        by_axis = {axis: n.static_int(size) for axis, size in zip(axes, tail, strict=True)}
        pairs = by_axis["p"]
        if pairs is None or pairs < 2 or by_axis["l"] != 2 or by_axis.get("1", 1) != 1:
            continue
        if n.same_shape(n.shape(source), (*lead, 2 * pairs)):
            yield source, lanes.start(source, lead, pairs, flat), None
        elif axes != "p1l":
            x = n.through_widening(node)
            yield x, lanes.start(x, lead, pairs, axes), (*lead, 2 * pairs)


def _slice_seeds(node: fx.Node) -> Iterator[Seed]:
    """[..., 2P] of which every other channel, or one half, is taken."""
    source = n.argument(node)
    sizes = n.shape(source)
    channels = n.static_int(sizes[-1]) if sizes else None
    if channels is None or channels < 4 or channels % 2 or not _floats(source):
        return
    pairs = channels // 2
    if node.target is aten.split.Tensor:
        dim = node.args[2] if len(node.args) > 2 else 0
        tag = (
            "h" if n.is_last_dim(dim, len(sizes)) and n.static_int(node.args[1]) == pairs else None
        )
    else:
        dim, begin, end, step = n.slice_bounds(channels, node.args[1:])
        if not n.is_last_dim(dim, len(sizes)):
            return
        tag = next(
            (t for t in "fh" if lanes.lane_of_bounds(t, pairs, begin, end, step) is not None), None
        )
    if tag is not None:
        x = n.through_widening(source)
        yield x, lanes.start(x, sizes[:-1], pairs, tag), None


def _floats(node: fx.Node) -> bool:
    found = n.value(node)
    return found is not None and found.dtype.is_floating_point
