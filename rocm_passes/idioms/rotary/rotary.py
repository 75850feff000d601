"""Rotary position embedding of one tensor, in every spelling.

Formula, for each pair of channels:  out1 = x1 * cos1 - x2 * sin1,  out2 = x2 * cos2 + x1 * sin2.
rotations.py recognises it by what is computed: complex numbers (Z-Image, Qwen-Image, Lumina2),
stacked or rotated halves (FLUX, HunyuanVideo, Cosmos, Llama), slice assignment (Wan), per-head
tables (Mochi), 2x2 matrices (Kandinsky, HiDream), addcmul_ on views (LTX-2); over all of x, its
first channels or some of its tokens.

Before (Z-Image in bf16)                        After
    z = view_as_complex(reshape(                    f = rocm_passes.as_real(freqs)
            convert(q, f32), [.., P, 2]))           y = rocm_passes.rotary(q, f[..., 0], f[..., 1],
    y = reshape(view_as_real(z * freqs),                    True, D, ..., "triton")
            [.., D])
    y = convert(y, bf16)

When it pays: where Inductor's own code is far from reading x once and writing it once, that is for
complex numbers, of which Inductor compiles nothing, and for slice assignment. Complex numbers go in
any case, on every device: the lowering "real" writes their parts in ATen. complex128 stays float64
unless rewrite_numerics="fast".

Refused: values inside the rotation that are used outside it; casts inside it that change values;
tables that fit no axis of x; under rewrite_numerics="strict", rotations computed in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.rotary.dims import as_moves
from rocm_passes.idioms.rotary.rotations import Rotation, rotations
from rocm_passes.idioms.rotary.tables import merge_tables
from rocm_passes.ops import rotary as op
from rocm_passes.ops.rotary_layout import Recipe, choose_axes, cut_heads
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded

NAME = "rotary"
COVERS = {"rotary": 1}
_WIDE = frozenset({torch.float32, torch.float64})


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    found = rotations(graph)
    merge_tables(found)
    for rotation in found:
        yield from guarded(rotation.anchor, COVERS, _found, rotation, context)


def _found(rotation: Rotation, context: Context) -> Found:
    recipe = recipe_of(rotation, context)
    if isinstance(recipe, str):
        return Miss(rotation.anchor, recipe, COVERS, rotation.parameters())
    arguments: dict[str, Any] = {"x": rotation.x, "tables": list(rotation.tables), "recipe": recipe}
    call = op.SpelledRotary(**arguments)
    nodes = frozenset(rotation.nodes)
    return Match(rotation.anchor, nodes, (rotation.result,), call, COVERS, rotation.parameters())


def recipe_of(rotation: Rotation, context: Context, like: Recipe | None = None) -> Recipe | str:
    """How the rotation is computed by an operator, or why it can't be; its axes named as in `like`,
    if given.
    """
    reason = _obstacle(rotation, context.options.rewrite_numerics)
    if reason is not None:
        return reason
    axes = like.axes if like is not None else _axes(rotation)
    if axes is None:
        return f"its tables fit none of the {len(rotation.lead) + 1} axes of x"
    partial = rotation.partial
    if partial is not None and partial.axis != axes.index("s"):
        return "it rotates a part of x along an axis that is not the tokens'"
    channels = rotation.width if rotation.view is not None else n.shape(rotation.x)[-1]
    width_is_all = rotation.width == channels
    return Recipe(
        view=rotation.view,
        axes=axes,
        heads=cut_heads(axes, channels, rotation.interleaved) if width_is_all else 1,
        interleaved=rotation.interleaved,
        width=rotation.width,
        entries=rotation.entries,
        seq_start=None if partial is None else partial.start,
        seq_tokens=None if partial is None else partial.tokens,
        out_dtype=n.tensor(rotation.result).dtype,
        core_shape=n.shape(rotation.core),
        tail=as_moves(v for v in rotation.tail if not n.is_cast(v)),
        fp64=rotation.fp64 and context.options.rewrite_numerics != "fast",
        complex=rotation.complex,
        scattered=rotation.scattered,
    )


def _obstacle(rotation: Rotation, numerics: str) -> str | None:
    """Why the rotation's own values can't come from an operator, or None."""
    if rotation.leak is not None:
        return f"an inner value ({rotation.leak.name}) is used outside the rotation"
    if rotation.lossy is not None:
        cast = rotation.lossy
        return (
            f"a cast inside it ({cast.name}, to {n.dtype(cast)}) changes the values that it is "
            "computed from"
        )
    if numerics != "strict":
        return None
    if len(rotation.steps) != 1 or not rotation.steps <= _WIDE:
        dtypes = ", ".join(sorted(map(str, rotation.steps)))
        return (
            f"rewrite_numerics='strict': the graph computes it in {dtypes}, and an operator in "
            "float32"
        )
    if rotation.fused:
        return (
            "rewrite_numerics='strict': the graph adds by addcmul, which may leave its product "
            "unrounded, or by a sum, which makes +0 of two -0"
        )
    if rotation.rounds_twice:
        return "rewrite_numerics='strict': the graph rounds its result twice, and an operator once"
    return None


def _axes(rotation: Rotation) -> str | None:
    partial = None if rotation.partial is None else rotation.partial.axis
    return choose_axes(rotation.lead, _varying_axes(rotation), partial, _heads_inside(rotation))


def _heads_inside(rotation: Rotation) -> bool:
    strides = n.tensor(rotation.x).stride()
    return rotation.view is None and len(strides) == 4 and n.known(strides[1] < strides[2])


def _varying_axes(rotation: Rotation) -> set[int]:
    """The leading axes of x along which a table has more than one row."""
    found = set()
    for table, entry in zip(rotation.tables, rotation.entries, strict=True):
        sizes = n.shape(table)
        sizes = sizes[: max(0, len(sizes) - len(entry.axes))]
        for back, size in enumerate(reversed(sizes), start=1):
            if not n.same_size(size, 1):
                found.add(len(rotation.lead) - back)
    return found


IDIOM = Idiom(NAME, find, op.ROTARY.lowerings, op.ROTARY)
