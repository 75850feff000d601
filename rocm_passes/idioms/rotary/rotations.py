"""Rotary embeddings read off the graph: what is rotated, by which tables, over which part of it.

Whatever the spelling, a rotation is a node both of whose lanes combine both channels of a pair of x (see
lanes/):

    out1 = x1 * cos1 - x2 * sin1
    out2 = x2 * cos2 + x1 * sin2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary import linear_forms as lanes

RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Entry:
    """How one of the four table entries of a pair is taken from its table; as in `lanes.Factor`."""

    sign: int
    axes: str
    index: tuple[int | None, ...]
    part: str


@dataclass
class Rotation:
    """A rotation as the graph spells it.

    x: [*lead, D] before lossless casts, or of another shape that `view` ([*lead, 2P]) reshapes. tables and
    entries: of cos1, sin1, cos2, sin2. interleaved: pairs are (2i, 2i+1), else (i, i+P). core: the node that
    holds the rotated pairs; tail: the views and the cast that follow it, up to the result. width: rotated
    channels, the first of D. token_axis, seq_start: the leading axis and the first of its rows that are
    rotated, where not all are. nodes: what a rewrite makes dead.
    """

    anchor: fx.Node
    x: fx.Node
    view: tuple[Any, ...] | None
    lead: tuple[Any, ...]
    interleaved: bool
    width: int
    tables: tuple[fx.Node, ...]
    entries: tuple[Entry, ...]
    core: fx.Node
    tail: list[fx.Node]
    fp64: bool
    complex: bool
    nodes: set[fx.Node] = field(default_factory=set)
    partial_axis: int | None = None
    seq_start: int | None = None
    leak: fx.Node | None = None
    scattered: bool = False

    @property
    def result(self) -> fx.Node:
        return self.tail[-1] if self.tail else self.core

    def parameters(self) -> dict[str, Any]:
        return {
            "pairs": "interleaved" if self.interleaved else "half-split",
            "channels": self.width,
            "of_channels": n.shape(self.x)[-1] if self.view is None else self.width,
            "tokens_from": self.seq_start,
            "x_dtype": n.dtype(self.x),
            "table_dtype": n.dtype(self.tables[0]),
            "computes_in": torch.float64 if self.fp64 else torch.float32,
            "out_dtype": n.dtype(self.result),
        }


def rotations(graph: fx.Graph) -> list[Rotation]:
    """Every rotation of the graph, in graph order; none of them twice."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, Rotation] = {}
    for seed in _seeds(graph):
        node, value, view = seed
        for core, rotated, inside in lanes.follow(node, value, order):
            layout = "f" if value.tail in ("f", "pl") else "h"
            if rotated.layout == layout and core not in found:
                found[core] = _rotation(node, view, layout, core, rotated, inside)
    ordered = sorted(found.values(), key=lambda r: order[r.core])
    taken: set[fx.Node] = set()
    kept = []
    for rotation in ordered:
        # x * cos + x' * sin is also a linear form of the tables' channels where those are split alike.
        if not rotation.nodes & taken:
            kept.append(_extended(rotation))
            taken |= rotation.nodes
    return kept


Seed = tuple[fx.Node, lanes.Value, tuple[Any, ...] | None]


def _seeds(graph: fx.Graph) -> Iterator[Seed]:
    """Tensors that something splits into two channels per pair: (node, its value, view)."""
    seen: set[tuple[fx.Node, str]] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in RESHAPES:
            seeds = _reshape_seeds(node)
        elif node.target is aten.slice.Tensor or node.target is aten.split.Tensor:
            seeds = _slice_seeds(node)
        else:
            continue
        for seed in seeds:
            if (seed[0], seed[1].tail) not in seen:
                seen.add((seed[0], seed[1].tail))
                yield seed


def _reshape_seeds(node: fx.Node) -> Iterator[Seed]:
    """[..., 2P] reshaped to [..., P, 2], [..., P, 1, 2] or [..., 2, P]; of [2, 2] it may be either."""
    sizes = n.shape(node)
    if len(sizes) < 3 or not _floats(node):
        return
    source = n.through_widening(n.argument(node))
    for axes, flat in (("pl", "f"), ("p1l", "f"), ("lp", "h")):
        tail = sizes[len(sizes) - len(axes) :]
        pairs = n.static_int(tail[axes.index("p")])
        if len(sizes) <= len(axes) or pairs is None or pairs < 2 or tail[axes.index("l")] != 2:
            continue
        if axes == "p1l" and tail[1] != 1:
            continue
        lead = sizes[: len(sizes) - len(axes)]
        if n.same_shape(n.shape(source), (*lead, 2 * pairs)):
            yield source, lanes.start(lead, pairs, flat), None
        elif axes != "p1l":
            yield n.through_widening(node), lanes.start(lead, pairs, axes), (*lead, 2 * pairs)


def _slice_seeds(node: fx.Node) -> Iterator[Seed]:
    """[..., 2P] of which every other channel, or one half, is taken."""
    source = n.argument(node)
    sizes = n.shape(source)
    pairs = n.static_int(sizes[-1]) if sizes else None
    if pairs is None or pairs < 4 or pairs % 2 or not _floats(source):
        return
    pairs //= 2
    if node.target is aten.split.Tensor:
        whole = len(node.args) > 2 and n.is_last_dim(node.args[2], len(sizes)) and node.args[1] == pairs
        tag = "h" if whole else None
    else:
        dim, begin, end, step = n.slice_bounds(sizes[-1], node.args[1:])
        if not n.is_last_dim(dim, len(sizes)):
            return
        tag = next((t for t in "fh" if lanes.lane_of_bounds(t, pairs, begin, end, step) is not None), None)
    if tag is None:
        return
    yield n.through_widening(source), lanes.start(sizes[:-1], pairs, tag), None


def _floats(node: fx.Node) -> bool:
    found = n.value(node)
    return found is not None and found.dtype.is_floating_point


def _rotation(
    x: fx.Node,
    view: tuple[Any, ...] | None,
    layout: str,
    core: fx.Node,
    value: lanes.Value,
    inside: set[fx.Node],
) -> Rotation:
    terms = {(lane[0], t.channel): t for lane, found in value.lanes.items() for t in found or ()}
    four = [terms[0, 0], terms[0, 1], terms[1, 1], terms[1, 0]]
    entries = []
    for number, term in enumerate(four):
        assert term.factor is not None
        sign = -term.sign if number == 1 else term.sign
        entries.append(Entry(sign, term.factor.axes, term.factor.index, term.factor.part))
    tables = tuple(t.factor.table for t in four if t.factor is not None)
    tail = _tail(core, (*value.lead, 2 * value.pairs))
    rotation = Rotation(
        anchor=core,
        x=x,
        view=view,
        lead=value.lead,
        interleaved=layout == "f",
        width=2 * value.pairs,
        tables=tables,
        entries=tuple(entries),
        core=core,
        tail=tail,
        fp64=value.fp64,
        complex=any(e.part for e in entries),
        nodes=inside | set(tail),
        scattered=n.is_call(core, aten.slice_scatter.default),
    )
    _drop_shared(rotation)
    return rotation


def _tail(core: fx.Node, flat: tuple[Any, ...]) -> list[fx.Node]:
    """The views that follow the rotation up to its rounding; without one, those that make it flat."""
    chain: list[fx.Node] = []
    end = 0
    node = n.only_user(core)
    while node is not None:
        if n.is_cast(node) and not n.is_widening(node):
            return [*chain, node]
        if not (node.op == "call_function" and node.target in n.VIEWS):
            break
        chain.append(node)
        if end == 0 and len(chain) == 1 and n.same_shape(n.shape(node), flat):
            end = 1
        node = n.only_user(node)
    return chain[:end]


def _drop_shared(rotation: Rotation) -> None:
    """Take views and casts of x that something else uses too out of `nodes`; note any other leak."""
    changed = True
    while changed:
        changed = False
        for node in list(rotation.nodes):
            outside = node is not rotation.result and any(u not in rotation.nodes for u in node.users)
            if not outside:
                continue
            if all(i is rotation.x or _only_moves(i, rotation.x) for i in node.all_input_nodes) and (
                _only_moves(node, rotation.x)
            ):
                rotation.nodes.discard(node)
                changed = True
            else:
                rotation.leak = node


def _only_moves(node: fx.Node, x: fx.Node) -> bool:
    """Does the node hold x's own values, moved or cast?"""
    while node is not x:
        moves = n.is_cast(node) or (
            node.op == "call_function"
            and (node.target in n.VIEWS or node.target in lanes.RULES)
            and len(node.all_input_nodes) == 1
            and node.target is not aten.neg.default
        )
        if not moves:
            return False
        node = node.all_input_nodes[0]
    return True


def _extended(rotation: Rotation) -> Rotation:
    """The rotation with the channels, then the tokens, that the graph sets beside it unrotated."""
    if rotation.view is None and rotation.leak is None:
        _extend_channels(rotation)
        _extend_tokens(rotation)
    return rotation


def _extend_channels(rotation: Rotation) -> None:
    """cat([rotated, x[..., R:]], -1) where x[..., :R] was rotated."""
    user, source = n.only_user(rotation.result), rotation.x
    if user is None or not n.is_call(source, aten.slice.Tensor) or not n.is_call(user, aten.cat.default):
        return
    base, rank = n.argument(source), len(n.shape(source))
    parts = n.arg(user, 0)
    dim = user.args[1] if len(user.args) > 1 else 0
    if len(parts) != 2 or not n.is_last_dim(dim, rank) or parts[0] is not rotation.result:
        return
    total = n.static_int(n.shape(base)[-1])
    if total is None or _bounds_of(source) != (rank - 1, 0, rotation.width):
        return
    if not n.is_call(parts[1], aten.slice.Tensor) or n.argument(parts[1]) is not base:
        return
    if _bounds_of(parts[1]) != (rank - 1, rotation.width, total) or n.dtype(user) != n.dtype(rotation.result):
        return
    _grow(rotation, base, user, {source, parts[1]})


def _extend_tokens(rotation: Rotation) -> None:
    """cat([rotated, x[:, T:]], 1), or x with x[:, T:] replaced, where only those tokens are rotated."""
    source = rotation.x
    if not n.is_call(source, aten.slice.Tensor):
        return
    base, bounds = n.argument(source), _bounds_of(source)
    user = n.only_user(rotation.result)
    if bounds is None or bounds[0] >= len(rotation.lead) or user is None:
        return
    dim, begin, end = bounds
    if n.dtype(base) != n.dtype(rotation.result):
        return
    if n.is_call(user, aten.cat.default):
        inside = _cat_of_slices(user, base, rotation.result, dim, begin, end)
    else:
        inside = _written_back(user, base, rotation.result, dim, begin, end)
    if inside is None:
        return
    result, extra = inside
    rotation.partial_axis, rotation.seq_start = dim, begin
    _grow(rotation, base, result, extra | {source})


def _cat_of_slices(
    cat: fx.Node, base: fx.Node, rotated: fx.Node, dim: int, begin: int, end: int
) -> tuple[fx.Node, set[fx.Node]] | None:
    rank = len(n.shape(base))
    if n.normalised_dim(cat.args[1] if len(cat.args) > 1 else 0, rank) != dim:
        return None
    at, extra = 0, set()
    for part in n.arg(cat, 0):
        if part is rotated:
            bounds: tuple[int, int, int] | None = (dim, begin, end)
        elif n.is_call(part, aten.slice.Tensor) and n.argument(part) is base:
            bounds = _bounds_of(part)
            extra.add(part)
        else:
            return None
        if bounds is None or bounds[0] != dim or bounds[1] != at:
            return None
        at = bounds[2]
    return (cat, extra) if at == n.shape(base)[dim] else None


def _written_back(
    user: fx.Node, base: fx.Node, rotated: fx.Node, dim: int, begin: int, end: int
) -> tuple[fx.Node, set[fx.Node]] | None:
    extra: set[fx.Node] = set()
    written = rotated
    if n.is_call(user, aten.copy.default) and user.args[1] is rotated:
        extra.add(user)
        written, after = user, n.only_user(user)
        if after is None:
            return None
        user = after
    if (
        not n.is_call(user, aten.slice_scatter.default)
        or user.args[0] is not base
        or user.args[1] is not written
    ):
        return None
    found = n.slice_bounds(n.shape(base)[dim], user.args[2:])
    if n.normalised_dim(found[0], len(n.shape(base))) != dim or found[1:] != (begin, end, 1):
        return None
    return user, extra


def _bounds_of(node: fx.Node) -> tuple[int, int, int] | None:
    """(dim, start, end) of a slice of step 1 with static bounds."""
    sizes = n.shape(n.argument(node))
    dim = n.normalised_dim(node.args[1] if len(node.args) > 1 else 0, len(sizes))
    if dim is None:
        return None
    _, begin, end, step = n.slice_bounds(sizes[dim], node.args[1:])
    if step != 1 or not isinstance(begin, int) or not isinstance(end, int):
        return None
    return dim, begin, end


def _grow(rotation: Rotation, base: fx.Node, result: fx.Node, extra: set[fx.Node]) -> None:
    rotation.x = base
    rotation.lead = n.shape(base)[:-1]
    rotation.core, rotation.tail = result, []
    inside = rotation.nodes | extra | {result}
    rotation.nodes = {m for m in inside if m is result or all(u in inside for u in m.users)}


def same_value(a: Any, b: Any, depth: int = 6) -> bool:
    """Are two nodes the same computation of the same inputs? (Nothing before us merges such nodes.)"""
    if a is b:
        return True
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if depth == 0 or a.op != "call_function" or b.op != "call_function" or a.target is not b.target:
            return False
        return same_value(a.args, b.args, depth - 1) and same_value(
            tuple(sorted(a.kwargs.items())), tuple(sorted(b.kwargs.items())), depth - 1
        )
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_value(x, y, depth) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def share_tables(a: Rotation, b: Rotation) -> bool:
    """Are both rotated by the same angles in the same way?"""
    return (
        a.entries == b.entries
        and a.interleaved == b.interleaved
        and a.width == b.width
        and a.seq_start == b.seq_start
        and all(same_value(x, y) for x, y in zip(a.tables, b.tables, strict=True))
    )


Order = Mapping[fx.Node, int]
