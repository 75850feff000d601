"""Rotary position embedding of one tensor, in every spelling.

Formula, for each pair of channels:  out1 = x1 * cos1 - x2 * sin1,  out2 = x2 * cos2 + x1 * sin2.
graph/rotations.py recognises it by what is computed: complex numbers (Z-Image, Qwen-Image, Lumina2),
stacked or rotated halves (FLUX, HunyuanVideo, Cosmos, Llama), slice assignment (Wan), per-head tables
(Mochi), 2x2 matrices (Kandinsky, HiDream), addcmul_ on views (LTX-2); over all of x, its first channels or
some of its tokens.

Before (Z-Image in bf16)                                       After
    z = view_as_complex(reshape(convert(q, f32), [.., P, 2]))      f = rocm_passes.as_real(freqs)
    y = reshape(view_as_real(z * freqs), [.., D])                  y = rocm_passes.rotary(q,
    y = convert(y, bf16)                                               f[..., 0], f[..., 1], True, D, ...)

When it pays: where Inductor's own code is far from reading x once and writing it once, that is for complex
numbers, of which Inductor compiles nothing, and for slice assignment. Complex numbers go in any case, on
every device: the lowering "real" writes their parts in ATen. complex128 stays float64 unless
rewrite_numerics="fast".

Refused: values inside the rotation that are used outside it; tables that fit no axis of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.rotary.rotations import Rotation, rotations, same_value
from rocm_passes.ops import rotary as op
from rocm_passes.ops.legacy import Arguments
from rocm_passes.ops.rotary_layout import Recipe, choose_axes, cut_heads
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

NAME = "rotary"
COVERS = {"rotary": 1}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    found = rotations(graph)
    merge_tables(found)
    for rotation in found:
        yield _found(rotation, context)


def _found(rotation: Rotation, context: Context) -> Found:
    recipe = recipe_of(rotation, context)
    if isinstance(recipe, str):
        return Miss(rotation.anchor, recipe, COVERS, rotation.parameters())
    arguments = {"x": rotation.x, "tables": list(rotation.tables), "recipe": recipe}
    nodes = frozenset(rotation.nodes)
    return Match(
        rotation.anchor, nodes, (rotation.result,), Arguments(arguments), COVERS, rotation.parameters()
    )


def merge_tables(found: list[Rotation]) -> None:
    """One node for each table that is computed more than once from the same inputs."""
    known: dict[tuple[Any, ...], list[fx.Node]] = {}
    for rotation in found:
        rotation.tables = tuple(_representative(t, known) for t in rotation.tables)


def _representative(table: fx.Node, known: dict[tuple[Any, ...], list[fx.Node]]) -> fx.Node:
    alike = known.setdefault((table.op, table.target, str(n.shape(table))), [])
    for other in alike:
        if same_value(other, table):
            return other
    alike.append(table)
    return table


def recipe_of(rotation: Rotation, context: Context) -> Recipe | str:
    """How the rotation is computed by an operator, or why it can't be."""
    if rotation.leak is not None:
        return f"an inner value ({rotation.leak.name}) is used outside the rotation"
    axes = choose_axes(rotation.lead, _varying_axes(rotation), rotation.partial_axis, _heads_inside(rotation))
    if axes is None:
        return f"its tables fit no axis of the {len(rotation.lead) + 1} of x"
    if rotation.partial_axis is not None and rotation.partial_axis != axes.index("s"):
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
        seq_start=rotation.seq_start,
        out_dtype=n.tensor(rotation.result).dtype,
        core_shape=n.shape(rotation.core),
        tail=tuple((v.target, v.args[1:]) for v in rotation.tail if not n.is_cast(v)),
        fp64=rotation.fp64 and context.options.rewrite_numerics != "fast",
        complex=rotation.complex,
        scattered=rotation.scattered,
    )


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


IDIOM = Idiom(NAME, find, op.LOWERINGS, op.OPERATOR)
