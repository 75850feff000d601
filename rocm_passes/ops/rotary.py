"""Rotary position embedding of one tensor.

    out1 = x1 * cos1 - x2 * sin1
    out2 = x2 * cos2 + x1 * sin2

for every pair of channels, in float32.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.fx.reuse import reuse
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default

#: What the kernels read and write.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rotary(Call):
    """x with its first `width` channels rotated, the others copied. Returns [B, S, H, D] of
    out_dtype, contiguous.

    x: [B, S, H, D], any float dtype and strides. cos, sin: [1 or B, S, 1 or H, R/2 or R] for R =
    width.
    seq_start: the token of the tables' first row, where these have fewer tokens than x; the others
    are copied.
    interleaved: pairs are (2i, 2i+1), else (i, i + R/2). conjugate: rotate by minus the angles.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool
    width: int
    conjugate: bool
    seq_start: int | None
    out_dtype: torch.dtype


@dataclass(frozen=True)
class SpelledRotary(Call):
    """A rotation as the graph spells it: what a match yields, and lowerings are asked about.

    tables: of cos1, sin1, cos2, sin2. contiguous: the operator's tables are written contiguous.
    """

    x: Tensor
    tables: Sequence[Tensor]
    recipe: Recipe
    contiguous: bool = False

    def prepared(self, b: Any) -> Rotary:
        """The operator's call, with every view and table written."""
        recipe = self.recipe
        cos, sin = tables_of(b, self.tables, recipe, self.contiguous)
        return Rotary(
            x=layout.bshd(b, self.x, recipe),
            cos=cos,
            sin=sin,
            interleaved=recipe.interleaved,
            width=recipe.width // recipe.heads,
            conjugate=recipe.conjugate,
            seq_start=recipe.seq_start,
            out_dtype=recipe.out_dtype,
        )

    def finished(self, b: Any, results: list[Any]) -> list[Any]:
        (y,) = results
        shape = self.recipe.view if self.recipe.view is not None else b.value(self.x).shape
        return [layout.original(b, y, self.recipe, tuple(shape))]


def tables_of(b: Any, tables: Sequence[Any], recipe: Recipe, contiguous: bool) -> tuple[Any, Any]:
    """The tables in four dims as the kernels read them, prepared once however many layers share
    them.

    float64 ones become float32; where `contiguous`, or where the strides of cos and sin differ, so
    do others.
    """
    cos, sin = layout.kernel_tables(b, tables, recipe)
    if contiguous or not n.same_shape(b.value(cos).stride(), b.value(sin).stride()):
        return _contiguous(b, _float32(b, cos)), _contiguous(b, _float32(b, sin))
    if b.value(cos).dtype is torch.float64:
        return _float32(b, cos), _float32(b, sin)
    return cos, sin


def _float32(b: Any, table: Any) -> Any:
    return (
        table if b.value(table).dtype is torch.float32 else reuse(b, convert, table, torch.float32)
    )


def _contiguous(b: Any, table: Any) -> Any:
    if b.value(table).is_contiguous():
        return table
    return reuse(b, aten.clone.default, table, memory_format=torch.contiguous_format)


def reference(call: Rotary) -> Tensor:
    """Plain torch, in float32, or float64 where x or a table is."""
    tensors = (call.x, call.cos, call.sin)
    wide = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    return rotated(call, call.x.to(wide)).to(call.out_dtype).contiguous()


def rotated(call: Rotary, x: Tensor) -> Tensor:
    """x in place of the call's, rotated in the dtype of x."""
    start, width, interleaved = call.seq_start or 0, call.width, call.interleaved
    tokens = x[:, start : start + call.cos.shape[1], :, :width]
    cos, sin = call.cos.to(x.dtype), call.sin.to(x.dtype) * (-1 if call.conjugate else 1)
    (x1, x2), (c1, c2), (s1, s2) = (_pairs(t, width, interleaved) for t in (tokens, cos, sin))
    turned = [x1 * c1 - x2 * s1, x2 * c2 + x1 * s2]
    joined = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    out = x.clone()
    out[:, start : start + cos.shape[1], :, :width] = joined
    return out


def _pairs(t: Tensor, width: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """First and second of each pair; the same entry for both where a table has half the width."""
    if t.shape[-1] != width:
        return t, t
    return (
        (t[..., 0::2], t[..., 1::2])
        if interleaved
        else (t[..., : width // 2], t[..., width // 2 :])
    )


def fake(call: Rotary) -> Tensor:
    return torch.empty(call.x.shape, dtype=call.out_dtype, device=call.x.device)


def refuses(call: SpelledRotary, target: Target) -> str | None:
    """Why no kernel can take this rotation, or None."""
    if call.recipe.fp64:
        return "the graph rotates in float64 (rewrite_numerics='fast' allows float32)"
    if call.x.dtype not in FLOATS:
        return f"x is {call.x.dtype}"
    if call.recipe.out_dtype not in FLOATS:
        return f"the result is {call.recipe.out_dtype}"
    own = call.prepared(Eager())
    if not isinstance(own.x.shape[3], int) or not isinstance(own.x.shape[2], int):
        return "the number of heads or of channels is symbolic"
    return tables_misfit("x", [own.x], own.cos, own.sin, partial=own.seq_start is not None)


def tables_misfit(
    name: str, rotated: Sequence[Tensor], cos: Tensor, sin: Tensor, partial: bool
) -> str | None:
    """Why the tables do not fit all of these tensors, or None.

    name: of the first. partial: the tables may be of fewer tokens.
    """
    x = rotated[0]
    if not n.same_shape(cos.shape, sin.shape):
        return f"cos is {list(cos.shape)} and sin {list(sin.shape)}"
    batch, tokens, heads, _ = cos.shape
    if not n.same_size(batch, 1) and not n.same_size(batch, x.shape[0]):
        return f"the tables are for {batch} samples and {name} has {x.shape[0]}"
    if not n.same_size(heads, 1) and not all(n.same_size(heads, t.shape[2]) for t in rotated):
        return f"the tables are for {heads} heads and {name} has {x.shape[2]}"
    if not partial and not n.same_size(tokens, x.shape[1]):
        return f"the tables are for {tokens} tokens and {name} has {x.shape[1]}"
    return None


def other_bits(call: SpelledRotary, target: Target) -> str | None:
    """Real products and sums are elementwise: plain torch rounds each, as the graph's nodes do."""
    if call.recipe.complex:
        return "the graph multiplies complex numbers, whose products ATen may leave unrounded"
    return None


#: Lowerings are asked about a `SpelledRotary` and run a `Rotary`.
ROTARY: Operator[Any] = Operator("rotary", Rotary, reference, fake, (1,), refuses, other_bits)
