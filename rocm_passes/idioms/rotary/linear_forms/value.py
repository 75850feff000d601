"""A value as a linear form in the two channels of a pair, and what a rule reads of its inputs'
values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n

LANE_AXES = "fhlz"
_REAL = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


@dataclass(frozen=True)
class Factor:
    """One entry per pair of a table: `axes` names its last axes, `index` picks the lane along each
    (or None).

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
    """A node as a linear form: `lanes` maps indices along its lane axes to terms; None where
    unwritten.

    x_dtype: of x, before lossless casts. steps: the real dtypes that products and sums are computed
    in. fused: may a sum of it differ from that of rounded products (addcmul, aten.sum)? rounded:
    the narrowing cast behind the last sum or product, with only moves behind it. lossy: a cast that
    no operator repeats: one to integers or 8 bits, or one that something is computed from.
    """

    lead: tuple[Any, ...]
    pairs: int
    tail: str
    lanes: Mapping[tuple[int, ...], Lane]
    x_dtype: torch.dtype
    steps: frozenset[torch.dtype] = frozenset()
    fused: bool = False
    rounded: fx.Node | None = None
    lossy: fx.Node | None = None

    @property
    def fp64(self) -> bool:
        return torch.float64 in self.steps

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
        at = lane_position(self.tail, axis)
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
            lane is not None
            and sorted(t.channel for t in lane) == [0, 1]
            and all(t.factor for t in lane)
            for lane in self.lanes.values()
        )


def lane_position(tail: str, axis: int) -> int:
    return sum(c in LANE_AXES for c in tail[:axis])


def start(x: fx.Node, lead: tuple[Any, ...], pairs: int, tail: str) -> Value:
    """x itself."""
    return Value(lead, pairs, tail, {(c,): (Term(1, c),) for c in (0, 1)}, n.tensor(x).dtype)


def real_dtype(node: fx.Node) -> torch.dtype:
    """The dtype of a node, or of the parts of its complex numbers."""
    found = n.tensor(node).dtype
    return _REAL.get(found, found)


def has_factors(value: Value) -> bool:
    return any(t.factor is not None for lane in value.lanes.values() for t in lane or ())


def has_factors_only(value: Value) -> bool:
    """Is every lane written, each of its terms with a factor?"""
    return all(lane is not None and all(t.factor for t in lane) for lane in value.lanes.values())


Evaluated = Value | tuple[Value, ...]
Known = Mapping[fx.Node, Evaluated]
Rule = Callable[[fx.Node, Known], Evaluated | None]


def value_of(arg: Any, known: Known) -> Value | None:
    found = known.get(arg) if isinstance(arg, fx.Node) else None
    return found if isinstance(found, Value) else None


def tail_axis(node: fx.Node, value: Value, dim: Any) -> int | None:
    """A dim of the node as an axis of its value's tail, or None where it is a leading dim."""
    rank = len(n.shape(node))
    if not isinstance(dim, int) or not rank:
        return None
    axis = dim % rank - (rank - len(value.tail))
    return axis if axis >= 0 else None


def same(node: fx.Node, known: Known) -> Value | None:
    return value_of(n.arg(node, 0), known)


def optional(node: fx.Node, index: int, default: Any) -> Any:
    return n.arg(node, index) if len(node.args) > index else default
