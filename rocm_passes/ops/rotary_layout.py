"""A rotation as the kernels want it: x as [B, S, H, D], the tables as [1 or B, S, 1 or H, R/2 or
R].

Everything here writes through a builder (fx/builder.py), so that it serves the graph, fake tensors
and real ones alike. Views of x cost nothing; tables are small and prepared once per graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.reuse import reuse
from rocm_passes.ops.complex_tables import real_of

aten = torch.ops.aten


@dataclass(frozen=True)
class TableEntry:
    """How one of the four table entries of a pair is taken from its table: a factor of
    `idioms/rotary/linear_forms`, without the table."""

    sign: int
    axes: str
    index: tuple[int | None, ...]
    part: str


@dataclass(frozen=True)
class Recipe:
    """What was read off the graph, without its nodes.

    view: a shape that x is reshaped to first, or None. axes: the leading axes of x by name: "bsh",
    "bhs", "sh", "bs" or "s". heads: into how many the channels of "bs" or "s" are cut. width:
    rotated channels. seq_start, seq_tokens: the first of the tokens that are rotated and their
    number, where not all are. core_shape: of the node that the rotation ends in; tail: (operator,
    further arguments) of the views between it and the result. fp64: the graph rotates in float64,
    and so must we. scattered: the graph writes the halves into an empty tensor, which Inductor runs
    as two kernels.
    """

    view: tuple[Any, ...] | None
    axes: str
    heads: int
    interleaved: bool
    width: int
    entries: tuple[TableEntry, ...]
    seq_start: int | None
    out_dtype: torch.dtype
    core_shape: tuple[Any, ...]
    tail: tuple[tuple[Any, tuple[Any, ...]], ...]
    fp64: bool
    complex: bool
    scattered: bool
    seq_tokens: Any = None

    @property
    def conjugate(self) -> bool:
        """Are both sines negated?"""
        return self.entries[1].sign < 0 and self.entries[3].sign < 0

    @property
    def token_axis(self) -> int:
        return self.axes.index("s")


def choose_axes(
    lead: Sequence[Any], varying: set[int], partial_axis: int | None, heads_inside: bool
) -> str | None:
    """The names of x's leading axes, from those along which its tables vary; None where they don't
    fit.

    Tables vary along the tokens, perhaps along the batch before them, seldom along the heads.
    partial_axis: the axis of which a part is rotated. heads_inside: of the last two leading axes
    the first is the nearer one in memory, as in a [B, H, S, D] view of [B, S, H, D].
    """
    if partial_axis is not None:
        by_rank = {1: ("s",), 2: ("sh", "bs"), 3: (None, "bsh", "bhs")}
        return by_rank[len(lead)][partial_axis] if len(lead) in by_rank else None
    if len(lead) == 1:
        return "s"
    if len(lead) == 2:
        return "bs" if 1 in varying else "sh"
    if len(lead) != 3:
        return None
    if 1 in varying and 2 in varying:
        return "bhs" if heads_inside else "bsh"
    if 1 in varying:
        return "bsh"
    if 2 in varying:
        return "bhs"
    # Only one token, or the batch alone tells: a table row for each sample.
    return "bsh" if n.same_size(lead[1], 1) else "bhs" if n.same_size(lead[2], 1) else None


def cut_heads(axes: str, channels: int, interleaved: bool) -> int:
    """Into how many heads of at most 128 channels a wide last dim without heads is cut."""
    if axes not in ("bs", "s") or not interleaved or channels <= 256:
        return 1
    size = next(s for s in (128, 64, 32, 16, 8, 4, 2, 1) if channels % s == 0)
    return channels // size if size > 1 else 1


def bshd(b: Any, x: Any, recipe: Recipe) -> Any:
    """x as [B, S, H, D], a view."""
    if recipe.view is not None:
        x = b(aten.reshape.default, x, list(recipe.view))
    if recipe.axes == "bhs":
        return b(aten.permute.default, x, [0, 2, 1, 3])
    if recipe.axes in ("sh", "s"):
        x = b(aten.unsqueeze.default, x, 0)
    if recipe.axes in ("bs", "s"):
        *lead, channels = _shape(x)
        x = b(aten.reshape.default, x, [*lead, recipe.heads, channels // recipe.heads])
    return x


def original(b: Any, y: Any, recipe: Recipe, lead_and_channels: Sequence[Any]) -> Any:
    """The rotated [B, S, H, D] as the graph's own result: the inverse of `bshd`, then the graph's
    views.
    """
    if recipe.axes == "bhs":
        y = b(aten.permute.default, y, [0, 2, 1, 3])
    else:
        y = b(aten.reshape.default, y, list(lead_and_channels))
    return finish(b, y, recipe)


def finish(b: Any, y: Any, recipe: Recipe) -> Any:
    """y [*lead, D] through the views that the graph has between the rotation and its result."""
    if not n.same_shape(_shape(y), recipe.core_shape):
        y = b(aten.reshape.default, y, list(recipe.core_shape))
    for target, rest in recipe.tail:
        y = b(target, y, *rest)
    return y


def four_entries(b: Any, tables: Sequence[Any], recipe: Recipe) -> list[Any]:
    """cos1, sin1, cos2, sin2, each [*lead, R/2] with their signs (of `conjugate`d sines
    without).
    """
    return [
        _signed(b, _entry(b, t, e), _sign(recipe, i))
        for i, (t, e) in enumerate(_paired(tables, recipe))
    ]


def kernel_tables(b: Any, tables: Sequence[Any], recipe: Recipe) -> tuple[Any, Any]:
    """cos and sin as [1 or B, S, 1 or H, R/2], or R where a pair's channels have entries of their
    own.
    """
    cos, cos_halves = _joined(b, tables, recipe, 0, 2)
    sin, sin_halves = _joined(b, tables, recipe, 1, 3)
    if len(cos_halves) != len(sin_halves):
        cos, sin = _woven(b, cos_halves, recipe), _woven(b, sin_halves, recipe)
    return _table_4d(b, cos, recipe), _table_4d(b, sin, recipe)


def _paired(tables: Sequence[Any], recipe: Recipe) -> list[tuple[Any, TableEntry]]:
    return list(zip(tables, recipe.entries, strict=True))


def _sign(recipe: Recipe, number: int) -> int:
    sign = recipe.entries[number].sign
    return -sign if number in (1, 3) and recipe.conjugate else sign


def _signed(b: Any, table: Any, sign: int) -> Any:
    return table if sign > 0 else reuse(b, aten.neg.default, table)


def _entry(b: Any, table: Any, entry: TableEntry) -> Any:
    """One table entry per pair: [*lead, P]."""
    if entry.part:
        parts = real_of(b, table)
        return _select(b, parts, len(_shape(parts)) - 1, 0 if entry.part == "re" else 1)
    for offset in range(1, len(entry.axes) + 1):
        axis, lane = entry.axes[-offset], entry.index[-offset]
        dim = len(_shape(table)) - 1 - _kept(entry.axes, offset)
        if dim < 0:
            continue
        if axis in "l1":
            table = _select(b, table, dim, lane or 0)
        elif axis == "f" and lane is not None:
            table = reuse(b, aten.slice.Tensor, table, dim, lane, _END, 2)
        elif axis == "h" and lane is not None:
            half = _shape(table)[dim] // 2
            table = reuse(b, aten.slice.Tensor, table, dim, lane * half, (lane + 1) * half)
    return table


_END = 9223372036854775807


def _kept(axes: str, offset: int) -> int:
    """How many of the axes behind this one are left: lanes and axes of size one are
    selected away.
    """
    return sum(a not in "l1" for a in axes[len(axes) - offset + 1 :])


def _select(b: Any, table: Any, dim: int, index: int) -> Any:
    return reuse(b, aten.select.int, table, dim, index)


def _joined(
    b: Any, tables: Sequence[Any], recipe: Recipe, first: int, second: int
) -> tuple[Any, list[Any]]:
    """(table, its halves): one half where both channels of a pair share an entry."""
    (t1, e1), (t2, e2) = _paired(tables, recipe)[first], _paired(tables, recipe)[second]
    sign1, sign2 = _sign(recipe, first), _sign(recipe, second)
    halves = [_signed(b, _entry(b, t1, e1), sign1)]
    if t1 is t2 and (e1.axes, e1.index, e1.part, sign1) == (e2.axes, e2.index, e2.part, sign2):
        return halves[0], halves
    halves.append(_signed(b, _entry(b, t2, e2), sign2))
    if t1 is t2 and sign1 == sign2 == 1:
        whole = _whole(b, t1, e1, e2, recipe)
        if whole is not None:
            return whole, halves
    return _woven(b, halves, recipe), halves


def _whole(b: Any, table: Any, e1: TableEntry, e2: TableEntry, recipe: Recipe) -> Any:
    """The table as it is, where it holds both entries of a pair as x holds its channels."""
    flat, split = ("f", "pl") if recipe.interleaved else ("h", "lp")
    axes = e1.axes.lstrip("1")
    lanes = [i for i, a in enumerate(e1.axes) if a in "fhl"]
    if e1.axes != e2.axes or axes not in (flat, split) or len(lanes) != 1:
        return None
    if (e1.index[lanes[0]], e2.index[lanes[0]]) != (0, 1):
        return None
    # Axes of size one in front belong to the pairs' tail, and a table of fewer dims lacks them.
    for _ in range(len(e1.axes) - len(axes)):
        dim = len(_shape(table)) - len(axes) - 1
        table = _select(b, table, dim, 0) if dim >= 0 else table
    if axes == flat:
        return table
    *lead, _, _ = _shape(table)
    return reuse(b, aten.reshape.default, table, [*lead, recipe.width])


def _woven(b: Any, halves: list[Any], recipe: Recipe) -> Any:
    """One table of whole width from the entries of the first and of the second channels."""
    first, second = (halves * 2)[:2] if len(halves) == 1 else halves
    shape = _broadcast(_shape(first), _shape(second))
    first, second = (
        h if n.same_shape(_shape(h), shape) else reuse(b, aten.expand.default, h, list(shape))
        for h in (first, second)
    )
    rank = len(shape)
    if not recipe.interleaved:
        return reuse(b, aten.cat.default, [first, second], rank - 1)
    pair = [reuse(b, aten.unsqueeze.default, h, rank) for h in (first, second)]
    both = reuse(b, aten.cat.default, pair, rank)
    return reuse(b, aten.reshape.default, both, [*shape[:-1], recipe.width])


def _broadcast(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """The common shape of two that are known to broadcast; torch.broadcast_shapes would guard on
    symbols.
    """
    rank = max(len(a), len(b))
    both = zip(*((*(1,) * (rank - len(s)), *s) for s in (a, b)), strict=True)
    return [y if n.same_size(x, 1) else x for x, y in both]


def _table_4d(b: Any, table: Any, recipe: Recipe) -> Any:
    lead = len(recipe.axes)
    while len(_shape(table)) > lead + 1:
        table = _select(b, table, 0, 0)
    while len(_shape(table)) < lead + 1:
        table = reuse(b, aten.unsqueeze.default, table, 0)
    if recipe.axes == "bhs":
        table = reuse(b, aten.permute.default, table, [0, 2, 1, 3])
    if recipe.axes in ("sh", "s"):
        table = reuse(b, aten.unsqueeze.default, table, 0)
    if recipe.axes in ("bs", "s"):
        batch, tokens, width = _shape(table)
        table = reuse(
            b, aten.reshape.default, table, [batch, tokens, recipe.heads, width // recipe.heads]
        )
    return _row_per_token(b, table, recipe)


def _row_per_token(b: Any, table: Any, recipe: Recipe) -> Any:
    """The table with its one row repeated, where it rotates a part of the tokens: its rows say how
    many.
    """
    batch, rows, heads, width = _shape(table)
    if recipe.seq_tokens is None or n.same_size(rows, recipe.seq_tokens):
        return table
    return reuse(b, aten.expand.default, table, [batch, recipe.seq_tokens, heads, width])


def _shape(x: Any) -> Sequence[Any]:
    return tuple(x.meta["val"].shape if isinstance(x, fx.Node) else x.shape)
