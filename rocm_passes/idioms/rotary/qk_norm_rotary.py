"""RMSNorm of q and k followed by the rotation, of one stream or of text and image side by side.

Before (Wan, for q; k alike)                           After
    q = convert(norm(q.float()) * w, bf16)                 q2, k2 = rocm_passes.qk_norm_rotary(
    q = reshape(q, [B, S, H, D])                               [q], [k], [wq], [wk], [cos], [sin], ...)
    q2 = rotation(q, cos, sin)

The streams of FLUX are joined between norm and rotation, those of Qwen-Image and HunyuanVideo behind it;
either way the kernel writes into the joint tensor, and no cat is left.

When it pays: where q is large enough that the host keeps ahead of the device, or a CUDA graph spares it.
Inductor takes two or three passes over q and k, for the mean must be known before the rotation, and the
rotation's halves or complex numbers make further ones.

Refused: a norm over other channels than a head's or a token's; weights as (1 + w); streams that differ in
where they round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import rms as norms
from rocm_passes.idioms.rotary import rotary
from rocm_passes.idioms.rotary.rotary_pair import pairs
from rocm_passes.idioms.rotary.rotations import Rotation, rotations
from rocm_passes.ops import qk_norm_rotary as op
from rocm_passes.ops.legacy import Arguments
from rocm_passes.ops.qk_norm_rotary import Norm, Streams
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.rewrite.match import Context, Found, Idiom, Match
from rocm_passes.rewrite.rewriter import escapes, is_convex

NAME = "qk_norm_rotary"


@dataclass
class Part:
    """One stream of q or k: its norm, and the views from the norm's result to the rotation's input."""

    rms: norms.RMS
    views: list[fx.Node]
    nodes: set[fx.Node]


@dataclass
class Normed:
    """A rotation of normed streams. joint: the cat of the streams, where it stands before the rotation."""

    rotation: Rotation
    recipe: Recipe
    parts: list[Part]
    joint: fx.Node | None = None

    @property
    def nodes(self) -> set[fx.Node]:
        found = set(self.rotation.nodes).union(*(p.nodes for p in self.parts))
        return found | ({self.joint} if self.joint is not None else set())


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    results = _norm_results(graph)
    if not results:
        return
    found = rotations(graph)
    rotary.merge_tables(found)
    order = {node: i for i, node in enumerate(graph.nodes)}
    normed = {r.core: m for r in found if (m := _normed(r, results, context)) is not None}
    attentions: list[tuple[Normed, ...]] = []
    single = {r.core: r for r in found if r.core in normed}
    for q, k in pairs(found, order):
        if q.core in normed and k.core in normed:
            attentions.append((normed[q.core], normed[k.core]))
            del single[q.core], single[k.core]
    attentions += [(normed[core],) for core in single]
    yield from _sites(attentions, results, order)


def _norm_results(graph: fx.Graph) -> dict[fx.Node, norms.RMS]:
    """Every RMSNorm by its result, and by what its last cast widens (it may be the rotation's cast)."""
    found: dict[fx.Node, norms.RMS] = {}
    for node in n.calls(graph, aten.rsqrt.default):
        read = norms.read(node)
        if isinstance(read, norms.RMS) and _plain(read):
            found[read.result] = read
            if n.is_widening(read.result):
                found[n.argument(read.result)] = read
    for node in n.calls(graph, aten._fused_rms_norm.default):
        read = norms.read_fused(node)
        if isinstance(read, norms.RMS) and _plain(read):
            found[read.result] = read
    return found


def _plain(rms: norms.RMS) -> bool:
    """Is it a norm that the operator computes?"""
    return (
        isinstance(rms.eps, float)
        and rms.weight_offset == 0.0
        and rms.eps_kind == "add"
        and n.dtype(rms.x) in n.FLOATING
        and rms.compute_dtype is torch.float32
        and rms.round_to in (None, n.dtype(rms.x))
    )


def _normed(rotation: Rotation, results: Mapping[fx.Node, norms.RMS], context: Context) -> Normed | None:
    recipe = rotary.recipe_of(rotation, context)
    if not isinstance(recipe, Recipe) or recipe.view is not None:
        return None
    part = _part(rotation.x, results)
    if part is not None:
        return Normed(rotation, recipe, [part])
    joint = rotation.x
    axis = recipe.token_axis
    if recipe.seq_start is not None or not n.is_call(joint, aten.cat.default):
        return None
    if _cat_dim(joint) != axis or any(u not in rotation.nodes for u in joint.users):
        return None
    parts = [_part(p, results) for p in n.arg(joint, 0)]
    if any(p is None for p in parts):
        return None
    return Normed(rotation, recipe, [p for p in parts if p is not None], joint)


def _cat_dim(cat: fx.Node) -> int | None:
    return n.normalised_dim(cat.args[1] if len(cat.args) > 1 else 0, len(n.shape(cat)))


def _part(x: fx.Node, results: Mapping[fx.Node, norms.RMS]) -> Part | None:
    """The norm behind x, through views that only x's own way uses."""
    views: list[fx.Node] = []
    node = x
    while node not in results:
        if not (node.op == "call_function" and node.target in n.VIEWS):
            return None
        views.insert(0, node)
        node = n.argument(node)
        if n.only_user(node) is not views[0]:
            return None
    rms = results[node]
    # The norm ends at `node`: where a cast follows that widens it, that cast is the rotation's.
    nodes = {m for m in rms.nodes if m is not rms.result or m is node}
    return Part(rms, views, nodes | set(views))


def _across_heads(part: Part, recipe: Recipe) -> bool | None:
    """Does the norm run over all heads of a token? None where it runs over neither them nor one head."""
    size = part.rms.size
    x = part.views[-1] if part.views else part.rms.result
    sizes = n.shape(x)
    channels = sizes[-1]
    if recipe.axes in ("bs", "s"):
        return recipe.heads > 1 if not part.views and n.same_size(size, channels) else None
    heads = sizes[1 if recipe.axes in ("bhs", "sh") else 2]
    if n.same_size(size, channels) and all(n.same_size(n.shape(v)[-1], size) for v in part.views):
        return False
    if not part.views or not n.same_size(size, heads * channels):
        return None
    split, *moves = part.views
    kept = all(n.same_size(n.shape(v)[-1], channels) for v in part.views)
    lead = n.shape(part.rms.x)[:-1]
    return (
        True if kept and n.same_shape(n.shape(split), (*lead, heads, channels)) and len(moves) <= 1 else None
    )


def _rounds_after(part: Part, entering: fx.Node) -> bool:
    """Is the normed value rounded to the dtype of the norm's input before it is rotated?"""
    return n.dtype(entering) == n.dtype(part.rms.x)


def _norm(part: Part, recipe: Recipe) -> Norm:
    views = tuple((v.target, v.args[1:]) for v in part.views)
    assert isinstance(part.rms.eps, float)
    return Norm(views, recipe, part.rms.eps)


def _sites(
    attentions: list[tuple[Normed, ...]], results: Mapping[fx.Node, norms.RMS], order: Mapping[fx.Node, int]
) -> Iterator[Found]:
    done: set[fx.Node] = set()
    by_result = {a[0].rotation.result: a for a in attentions}
    for attention in attentions:
        if attention[0].rotation.core in done:
            continue
        site, members = _joined(attention, by_result, results, order), [attention]
        if site is not None:
            members = site[1]
        found = site[0] if site is not None else _site(attention)
        if found is not None and not found.nodes.intersection(found.inputs()) and is_convex(found, order):
            done |= {m.rotation.core for a in members for m in a}
            yield found
        elif site is not None:
            alone = _site(attention)
            if alone is not None:
                done.add(attention[0].rotation.core)
                yield alone


def _site(attention: tuple[Normed, ...]) -> Match | None:
    """Norm and rotation of q and k, or of one of them; streams joined before the rotation or not at all."""
    first = attention[0]
    if any(len(m.parts) != len(first.parts) for m in attention):
        return None
    rows = _rows_of_parts(first)
    streams = _streams(
        [m.parts for m in attention],
        [m.recipe for m in attention],
        rows,
        (first.recipe,),
        [(m.recipe, n.shape(m.rotation.x)) for m in attention],
    )
    outputs = tuple(m.rotation.result for m in attention)
    nodes = frozenset().union(*(m.nodes for m in attention))
    return _closed(attention, [m.parts for m in attention], [first], streams, outputs, nodes)


def _rows_of_parts(normed: Normed) -> list[tuple[int | None, int | None, int | None]]:
    if normed.joint is None:
        return [(0, None, None)]
    rows: list[tuple[int | None, int | None, int | None]] = []
    begin = 0
    for part in n.arg(normed.joint, 0):
        size = n.shape(part)[normed.recipe.token_axis]
        rows.append((0, begin, begin + size))
        begin += size
    return rows


def _streams(
    parts: list[list[Part]],
    recipes: list[Recipe],
    rows: list[tuple[int | None, int | None, int | None]],
    tables: tuple[Recipe, ...],
    outs: list[tuple[Recipe, tuple[Any, ...]]],
) -> Streams | None:
    """The parameters that the streams share, or None where they differ."""
    across = {_across_heads(p, r) for ps, r in zip(parts, recipes, strict=True) for p in ps}
    every = [p for ps in parts for p in ps]
    before = {p.rms.round_to is not None for p in every}
    after = {_rounds_after(p, _entering(p)) for p in every}
    if len(across) != 1 or None in across or len(before) != 1 or len(after) != 1:
        return None
    norms_of = [tuple(_norm(p, r) for p in ps) for ps, r in zip(parts, recipes, strict=True)]
    return Streams(
        q=norms_of[0],
        k=norms_of[1] if len(norms_of) > 1 else (),
        rows=tuple(rows),
        tables=tables,
        q_out=outs[0],
        k_out=outs[1] if len(outs) > 1 else None,
        across_heads=across == {True},
        round_before_weight=before == {True},
        round_after_norm=after == {True},
    )


def _entering(part: Part) -> fx.Node:
    """The node that holds the norm's result as the rotation takes it."""
    if part.views:
        return n.argument(part.views[0])
    return part.rms.result if part.rms.result in part.nodes else n.argument(part.rms.result)


def _closed(
    attention: tuple[Normed, ...],
    parts: list[list[Part]],
    tabled: list[Normed],
    streams: Streams | None,
    outputs: tuple[fx.Node, ...],
    nodes: frozenset[fx.Node],
) -> Match | None:
    """The site, where nothing inside it is used outside and weights are given for all streams or for none."""
    if streams is None or escapes(nodes, outputs) is not None:
        return None
    weights: list[list[fx.Node]] = []
    for ps in parts:
        given = [p.rms.weight for p in ps if p.rms.weight is not None]
        if given and len(given) != len(ps):
            return None
        weights.append(given)
    arguments = {
        "q": [p.rms.x for p in parts[0]],
        "k": [p.rms.x for p in parts[1]] if len(parts) > 1 else [],
        "q_weight": weights[0],
        "k_weight": weights[1] if len(parts) > 1 else [],
        "tables": [list(m.rotation.tables) for m in tabled],
        "streams": streams,
    }
    covers = {"rotary": len(attention), "rms_norm": sum(map(len, parts))}
    first = attention[0]
    parameters = {
        **first.rotation.parameters(),
        "norm": first.parts[0].rms.parameters()["spelling"],
        "across_heads": streams.across_heads,
        "eps": streams.q[0].eps,
        "streams": len(streams.q),
    }
    return Match(first.rotation.anchor, nodes, outputs, Arguments(arguments), covers, parameters)


def _joined(
    attention: tuple[Normed, ...],
    by_result: Mapping[fx.Node, tuple[Normed, ...]],
    results: Mapping[fx.Node, norms.RMS],
    order: Mapping[fx.Node, int],
) -> tuple[Match, list[tuple[Normed, ...]]] | None:
    """The site of all streams whose q are joined by one cat and whose k by another, behind the rotation."""
    if len(attention) != 2 or any(m.joint is not None or m.recipe.seq_start is not None for m in attention):
        return None
    cats = [n.only_user(m.rotation.result) for m in attention]
    q_cat, k_cat = cats
    if q_cat is None or k_cat is None or not _joins(q_cat, attention[0]) or not _joins(k_cat, attention[1]):
        return None
    q_parts, k_parts = n.arg(q_cat, 0), n.arg(k_cat, 0)
    if q_cat is k_cat or len(q_parts) != len(k_parts):
        return None
    members: list[tuple[Normed, ...]] = []
    parts: list[list[Part]] = [[], []]
    rows: list[tuple[int | None, int | None, int | None]] = []
    extra: set[fx.Node] = {q_cat, k_cat}
    for q, k in zip(q_parts, k_parts, strict=True):
        if n.only_user(q) is not q_cat or n.only_user(k) is not k_cat:
            return None
        other = by_result.get(q)
        if other is not None and len(other) == 2 and other[1].rotation.result is k and other[0].joint is None:
            if not _alike(other[0].recipe, attention[0].recipe):
                return None
            rows.append((len(members), None, None))
            members.append(other)
            stream = [other[0].parts[0], other[1].parts[0]]
        else:
            alone = [_part(q, results), _part(k, results)]
            if alone[0] is None or alone[1] is None:
                return None
            stream = [alone[0], alone[1]]
            rows.append((None, None, None))
            extra |= {q, k}
        for side, part in zip(parts, stream, strict=True):
            side.append(part)
    firsts = [a[0] for a in members]
    outs = [
        (replace(m.recipe, core_shape=n.shape(cat), tail=()), n.shape(cat))
        for m, cat in zip(attention, (q_cat, k_cat), strict=True)
    ]
    streams = _streams(parts, [m.recipe for m in attention], rows, tuple(m.recipe for m in firsts), outs)
    nodes = frozenset(extra).union(
        *(m.nodes for a in members for m in a), *(p.nodes for ps in parts for p in ps)
    )
    every = tuple(m for a in members for m in a)
    site = _closed(every, parts, firsts, streams, (q_cat, k_cat), nodes)
    return None if site is None else (site, members)


def _joins(cat: fx.Node, normed: Normed) -> bool:
    """Does the cat put whole rotated tensors [*lead, D] one behind the other along their tokens?"""
    flat = n.same_shape(n.shape(normed.rotation.result), n.shape(normed.rotation.x))
    return (
        n.is_call(cat, aten.cat.default)
        and flat
        and _cat_dim(cat) == normed.recipe.token_axis
        and n.dtype(cat) == normed.recipe.out_dtype
        and normed.recipe.axes in ("bsh", "bhs")
    )


def _alike(a: Recipe, b: Recipe) -> bool:
    return (a.axes, a.heads, a.interleaved, a.width, a.conjugate, a.seq_start, a.out_dtype, a.fp64) == (
        b.axes, b.heads, b.interleaved, b.width, b.conjugate, b.seq_start, b.out_dtype, b.fp64,
    )  # fmt: skip


IDIOM = Idiom(NAME, find, op.LOWERINGS, op.OPERATOR, keeps=("_fused_rms_norm",), fuses=True)
