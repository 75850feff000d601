"""RMSNorm of q and k followed by the rotation, of one stream or of text and image side by side.

Before (Wan, for q; k alike)                    After
    q = convert(norm(q.float()) * w, bf16)          q2, k2 = rocm_passes.qk_norm_rotary([q], [k],
    q = reshape(q, [B, S, H, D])                            [wq], [wk], [cos], [sin], ...)
    q2 = rotation(q, cos, sin)

The streams of FLUX are joined between norm and rotation, those of Qwen-Image and HunyuanVideo
behind it; either way the kernel writes into the joint tensor, and no cat is left.

When it pays: where q is large enough that the host keeps ahead of the device, or a CUDA graph
spares it. Inductor takes two or three passes over q and k, for the mean must be known before the
rotation, and the rotation's halves or complex numbers make further ones.

Where q goes to other ranks while k is computed, q and k are two sites.

Refused: a norm over other channels than a head's or a token's; weights as (1 + w); streams that
differ in where they round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.collectives import Collectives, collectives
from rocm_passes.fx.convexity import Contraction
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import rms as norms
from rocm_passes.idioms.rotary import rotary
from rocm_passes.idioms.rotary.dims import cat_dim
from rocm_passes.idioms.rotary.normed import (
    Normed,
    Part,
    across_heads,
    norm_of,
    norm_results,
    normed,
    part_of,
    rounds_after,
)
from rocm_passes.idioms.rotary.partial import keeps_dims
from rocm_passes.idioms.rotary.rotary_pair import pairs, recipes_of
from rocm_passes.idioms.rotary.rotations import rotations
from rocm_passes.idioms.rotary.tables import merge_tables
from rocm_passes.ops import qk_norm_rotary as op
from rocm_passes.ops.qk_norm_rotary import Streams
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.rewrite.match import Context, Found, Idiom, Match
from rocm_passes.rewrite.rewriter import escapes

NAME = "qk_norm_rotary"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    results = norm_results(graph)
    if not results:
        return
    found = rotations(graph)
    merge_tables(found)
    contraction = Contraction(graph)
    attentions: list[tuple[Normed, ...]] = []
    single = {r.core: r for r in found}
    for q, k in pairs(found, contraction):
        recipes = recipes_of(q, k, context)
        both = [
            normed(r, recipe, results) for r, recipe in zip((q, k), recipes or (), strict=False)
        ]
        if len(both) == 2 and both[0] is not None and both[1] is not None:
            attentions.append((both[0], both[1]))
            del single[q.core], single[k.core]
    for rotation in single.values():
        recipe = rotary.recipe_of(rotation, context)
        alone = normed(rotation, recipe, results) if isinstance(recipe, Recipe) else None
        if alone is not None:
            attentions.append((alone,))
    yield from _sites(attentions, results, contraction, context.read_once(graph, collectives))


def _sites(
    attentions: list[tuple[Normed, ...]],
    results: Mapping[fx.Node, norms.RMS],
    contraction: Contraction,
    beside: Collectives,
) -> Iterator[Found]:
    done: set[fx.Node] = set()
    by_result = {a[0].rotation.result: a for a in attentions}
    for attention in attentions:
        if attention[0].rotation.core in done:
            continue
        site, members = _joined(attention, by_result, results), [attention]
        if site is not None:
            members = site[1]
        found = site[0] if site is not None else _site(attention)
        if found is not None and found.obstacle(contraction) is None:
            done |= {m.rotation.core for a in members for m in a}
            yield found
            if beside.obstacle(found.nodes, found.inputs(), found.outputs):
                # It will be refused: q is sent to the other ranks while k is computed.
                each = (_site((m,)) for a in members for m in a)
                yield from (one for one in each if one is not None)
        elif site is not None:
            alone = _site(attention)
            if alone is not None:
                done.add(attention[0].rotation.core)
                yield alone


def _site(attention: tuple[Normed, ...]) -> Match | None:
    """Norm and rotation of q and k, or of one of them; streams joined before the rotation or not at
    all.
    """
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
    across = {across_heads(p, r) for ps, r in zip(parts, recipes, strict=True) for p in ps}
    every = [p for ps in parts for p in ps]
    before = {p.rms.round_to is not None for p in every}
    after = {rounds_after(p) for p in every}
    named = {(r.axes, r.heads, r.out_dtype) for r in recipes}
    if any(len(kinds) != 1 or None in kinds for kinds in (across, before, after, named)):
        return None
    norms_of = [tuple(norm_of(p, r) for p in ps) for ps, r in zip(parts, recipes, strict=True)]
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


def _closed(
    attention: tuple[Normed, ...],
    parts: list[list[Part]],
    tabled: list[Normed],
    streams: Streams | None,
    outputs: tuple[fx.Node, ...],
    nodes: frozenset[fx.Node],
) -> Match | None:
    """The site, where nothing inside it is used outside and weights are given for all streams or
    for none.
    """
    if streams is None or escapes(nodes, outputs) is not None:
        return None
    weights: list[list[fx.Node]] = []
    for ps in parts:
        given = [p.rms.weight for p in ps if p.rms.weight is not None]
        if given and len(given) != len(ps):
            return None
        weights.append(given)
    arguments: dict[str, Any] = {
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
    call = op.SpelledQkNormRotary(**arguments)
    return Match(first.rotation.anchor, nodes, outputs, call, covers, parameters)


def _joined(
    attention: tuple[Normed, ...],
    by_result: Mapping[fx.Node, tuple[Normed, ...]],
    results: Mapping[fx.Node, norms.RMS],
) -> tuple[Match, list[tuple[Normed, ...]]] | None:
    """The site of all streams whose q are joined by one cat and whose k by another, behind the
    rotation.
    """
    cats = _cats(attention)
    if cats is None:
        return None
    q_cat, k_cat = cats
    members: list[tuple[Normed, ...]] = []
    parts: list[list[Part]] = [[], []]
    rows: list[tuple[int | None, int | None, int | None]] = []
    extra: set[fx.Node] = {q_cat, k_cat}
    for q, k in zip(n.arg(q_cat, 0), n.arg(k_cat, 0), strict=True):
        if n.only_user(q) is not q_cat or n.only_user(k) is not k_cat:
            return None
        other = by_result.get(q)
        if (
            other is not None
            and len(other) == 2
            and other[1].rotation.result is k
            and other[0].joint is None
        ):
            if not _alike(other[0].recipe, attention[0].recipe):
                return None
            rows.append((len(members), None, None))
            members.append(other)
            stream = [other[0].parts[0], other[1].parts[0]]
        else:
            alone = [part_of(q, results), part_of(k, results)]
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
    streams = _streams(
        parts, [m.recipe for m in attention], rows, tuple(m.recipe for m in firsts), outs
    )
    nodes = frozenset(extra).union(
        *(m.nodes for a in members for m in a), *(p.nodes for ps in parts for p in ps)
    )
    every = tuple(m for a in members for m in a)
    site = _closed(every, parts, firsts, streams, (q_cat, k_cat), nodes)
    return None if site is None else (site, members)


def _cats(attention: tuple[Normed, ...]) -> tuple[fx.Node, fx.Node] | None:
    """The cats of as many parts that join q's streams and k's behind the rotation, or None."""
    if len(attention) != 2 or any(
        m.joint is not None or m.recipe.seq_start is not None for m in attention
    ):
        return None
    q_cat, k_cat = (n.only_user(m.rotation.result) for m in attention)
    if q_cat is None or k_cat is None or q_cat is k_cat:
        return None
    if not _joins(q_cat, attention[0]) or not _joins(k_cat, attention[1]):
        return None
    return (q_cat, k_cat) if len(n.arg(q_cat, 0)) == len(n.arg(k_cat, 0)) else None


def _joins(cat: fx.Node, normed: Normed) -> bool:
    """Does the cat put whole rotated tensors [*lead, D] one behind the other along their tokens?"""
    return (
        n.is_call(cat, aten.cat.default)
        and keeps_dims(normed.rotation)
        and cat_dim(cat) == normed.recipe.token_axis
        and n.dtype(cat) == normed.recipe.out_dtype
        and normed.recipe.axes in ("bsh", "bhs")
    )


def _alike(a: Recipe, b: Recipe) -> bool:
    return (a.axes, a.heads, a.interleaved, a.width, a.conjugate, a.seq_start, a.out_dtype,
    a.fp64) == (
        b.axes, b.heads, b.interleaved, b.width, b.conjugate, b.seq_start, b.out_dtype, b.fp64,
    )  # fmt: skip


IDIOM = Idiom(
    NAME,
    find,
    op.QK_NORM_ROTARY.lowerings,
    op.QK_NORM_ROTARY,
    preserves=("_fused_rms_norm",),
    fuses=True,
)
