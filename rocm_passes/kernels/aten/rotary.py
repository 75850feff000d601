"""A rotation by complex numbers in real ATen, which Inductor fuses: it generates no code for
complex tensors.
"""

from __future__ import annotations

from typing import Any

import torch

from rocm_passes.fx import nodes as n
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rotary import ROTARY, SpelledRotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default


def refuses(call: SpelledRotary, target: Target) -> str | None:
    return None if call.recipe.complex else "the graph rotates in real numbers already"


def other_bits(call: SpelledRotary, target: Target) -> str | None:
    return "the graph multiplies complex numbers, whose products ATen may leave unrounded"


def write(b: Any, call: SpelledRotary) -> Any:
    x: Any = call.x
    recipe = call.recipe
    if recipe.view is not None:
        x = b(aten.reshape.default, x, list(recipe.view))
    shape = tuple(b.value(x).shape)
    axis, rank, part = recipe.token_axis, len(shape), x
    cos1, sin1, cos2, sin2 = layout.four_entries(b, call.tables, recipe)
    tokens = shape[axis] if recipe.seq_tokens is None else recipe.seq_tokens
    if recipe.seq_start is not None:
        part = b(aten.slice.Tensor, part, axis, recipe.seq_start, recipe.seq_start + tokens)
    whole = part
    if recipe.width != shape[-1]:
        part = b(aten.slice.Tensor, part, rank - 1, 0, recipe.width)
    wide = torch.float64 if recipe.fp64 else torch.float32
    pairs = b(convert, _paired(b, part, recipe), wide)
    lane = rank if recipe.interleaved else rank - 1
    x1, x2 = (b(aten.select.int, pairs, lane, i) for i in (0, 1))
    minus, plus = (aten.add, aten.sub) if recipe.conjugate else (aten.sub, aten.add)
    turned = [
        b(op.Tensor, b(aten.mul.Tensor, *a), b(aten.mul.Tensor, *c))
        for op, a, c in ((minus, (x1, cos1), (x2, sin1)), (plus, (x2, cos2), (x1, sin2)))
    ]
    y = b(aten.cat.default, [b(aten.unsqueeze.default, t, lane) for t in turned], lane)
    y = b(aten.reshape.default, y, [*b.value(part).shape])
    y = b(convert, y, recipe.out_dtype)
    if recipe.width != shape[-1]:
        y = b(
            aten.cat.default,
            [y, _cast(b, b(aten.slice.Tensor, whole, rank - 1, recipe.width, shape[-1]), recipe)],
            -1,
        )
    if recipe.seq_start is not None:
        ends = ((0, recipe.seq_start), (recipe.seq_start + tokens, shape[axis]))
        before, after = (
            None if n.same_size(*e) else b(aten.slice.Tensor, x, axis, *e) for e in ends
        )
        pieces = [p for p in (before, y, after) if p is not None]
        y = b(aten.cat.default, [p if p is y else _cast(b, p, recipe) for p in pieces], axis)
    return layout.finish(b, y, recipe)


def _paired(b: Any, x: Any, recipe: Recipe) -> Any:
    *lead, width = b.value(x).shape
    split = [width // 2, 2] if recipe.interleaved else [2, width // 2]
    return b(aten.reshape.default, x, [*lead, *split])


def _cast(b: Any, x: Any, recipe: Recipe) -> Any:
    return x if b.value(x).dtype is recipe.out_dtype else b(convert, x, recipe.out_dtype)


REAL = ROTARY.register(Lowering("real", refuses=refuses, write=write, other_bits=other_bits))
