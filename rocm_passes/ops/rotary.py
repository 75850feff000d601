"""Rotary position embedding of one tensor.

    out1 = x1 * cos1 - x2 * sin1,    out2 = x2 * cos2 + x1 * sin2      for every pair of channels, in float32

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.fx.reuse import reuse
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.legacy import Lowering, Operator
from rocm_passes.ops.operator import needs_cpu
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target, needs_import, needs_triton

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default

SCHEMA = (
    "(Tensor x, Tensor cos, Tensor sin, bool interleaved, int width, bool conjugate, int? seq_start, "
    "ScalarType out_dtype) -> Tensor"
)


def rotated(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, width: int, conjugate: bool, seq_start: int | None
) -> Tensor:
    """x [B, S, H, D] with its first `width` channels rotated, computed in the dtype of x."""
    start = seq_start or 0
    tokens = x[:, start : start + cos.shape[1], :, :width]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype) * (-1 if conjugate else 1)
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
    return (t[..., 0::2], t[..., 1::2]) if interleaved else (t[..., : width // 2], t[..., width // 2 :])


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32


def reference(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """Plain torch, in float32, or float64 where x or a table is.

    x: [B, S, H, D], any float dtype and strides. cos, sin: [1 or B, S, 1 or H, R/2 or R] for R = width, the
    first channels of D; S may be fewer tokens than x has, from token `seq_start` on. conjugate: minus the
    angles. Returns [B, S, H, D] of out_dtype, contiguous; what is not rotated is copied.
    """
    wide = x.to(wide_dtype(x, cos, sin))
    return rotated(wide, cos, sin, interleaved, width, conjugate, seq_start).to(out_dtype).contiguous()


def fake(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> Tensor:
    return torch.empty(x.shape, dtype=out_dtype, device=x.device)


def _triton(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> Tensor:
    from rocm_passes.kernels.triton.rotary import rotary

    return rotary.rotary(
        x,
        cos,
        sin,
        interleaved=interleaved,
        rotary_dim=width,
        conjugate=conjugate,
        seq_start=seq_start,
        out=torch.empty(x.shape, dtype=out_dtype, device=x.device),
    )


def _aiter(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> Tensor:
    from rocm_passes.kernels.aiter import rotary

    return rotary.rotary(x, cos, sin, interleaved=interleaved, rotated=width)


# What the idiom's lowerings write. Each takes x, tables (of cos1, sin1, cos2, sin2) and a Recipe.


def call(x: Any, tables: Sequence[Any], recipe: Recipe, b: Any, contiguous: bool = False) -> dict[str, Any]:
    """The operator's arguments, with every view and table written."""
    cos, sin = tables_of(b, tables, recipe, contiguous)
    return {
        "x": layout.bshd(b, x, recipe),
        "cos": cos,
        "sin": sin,
        "interleaved": recipe.interleaved,
        "width": recipe.width // recipe.heads,
        "conjugate": recipe.conjugate,
        "seq_start": recipe.seq_start,
        "out_dtype": recipe.out_dtype,
    }


def tables_of(b: Any, tables: Sequence[Any], recipe: Recipe, contiguous: bool) -> tuple[Any, Any]:
    """The tables in four dims as the kernels read them, prepared once however many layers share them.

    float64 ones become float32; where `contiguous`, or where the strides of cos and sin differ, so do others.
    """
    cos, sin = layout.kernel_tables(b, tables, recipe)
    if contiguous or not n.same_shape(b.value(cos).stride(), b.value(sin).stride()):
        return _contiguous(b, _float32(b, cos)), _contiguous(b, _float32(b, sin))
    if b.value(cos).dtype is torch.float64:
        return _float32(b, cos), _float32(b, sin)
    return cos, sin


def _float32(b: Any, table: Any) -> Any:
    return table if b.value(table).dtype is torch.float32 else reuse(b, convert, table, torch.float32)


def _contiguous(b: Any, table: Any) -> Any:
    if b.value(table).is_contiguous():
        return table
    return reuse(b, aten.clone.default, table, memory_format=torch.contiguous_format)


def writes(name: str) -> Callable[..., Any]:
    """A call of the operator by this lowering."""

    def write(b: Any, x: Any, tables: Sequence[Any], recipe: Recipe) -> Any:
        shape = recipe.view if recipe.view is not None else b.value(x).shape
        arguments = call(x, tables, recipe, b, contiguous=name == "aiter")
        y = b(OPERATOR.overload, *[arguments[p] for p in OPERATOR.parameters], name)
        return layout.original(b, y, recipe, tuple(shape))

    return write


def write_real(b: Any, x: Any, tables: Sequence[Any], recipe: Recipe) -> Any:
    """The rotation in real ATen, for Inductor to fuse: complex numbers without complex tensors."""
    if recipe.view is not None:
        x = b(aten.reshape.default, x, list(recipe.view))
    shape = tuple(b.value(x).shape)
    axis, rank, part = recipe.token_axis, len(shape), x
    cos1, sin1, cos2, sin2 = layout.four_entries(b, tables, recipe)
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
        before, after = (None if n.same_size(*e) else b(aten.slice.Tensor, x, axis, *e) for e in ends)
        pieces = [p for p in (before, y, after) if p is not None]
        y = b(aten.cat.default, [p if p is y else _cast(b, p, recipe) for p in pieces], axis)
    return layout.finish(b, y, recipe)


def _paired(b: Any, x: Any, recipe: Recipe) -> Any:
    *lead, width = b.value(x).shape
    split = [width // 2, 2] if recipe.interleaved else [2, width // 2]
    return b(aten.reshape.default, x, [*lead, *split])


def _cast(b: Any, x: Any, recipe: Recipe) -> Any:
    return x if b.value(x).dtype is recipe.out_dtype else b(convert, x, recipe.out_dtype)


# What the idiom's lowerings refuse, and when they pay.


def problem(x: Tensor, tables: Sequence[Tensor], recipe: Recipe) -> str | None:
    """Why no operator of ours can take this rotation, or None."""
    if recipe.fp64:
        return "the graph rotates in float64 (rewrite_numerics='fast' allows float32)"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {x.dtype}"
    if recipe.out_dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the result is {recipe.out_dtype}"
    arguments = call(x, tables, recipe, Eager())
    x4, cos, sin = arguments["x"], arguments["cos"], arguments["sin"]
    if not n.same_shape(cos.shape, sin.shape):
        return f"cos is {list(cos.shape)} and sin {list(sin.shape)}"
    if not isinstance(x4.shape[3], int) or not isinstance(x4.shape[2], int):
        return "the number of heads or of channels is symbolic"
    batch, tokens, heads, _ = cos.shape
    if not n.same_size(batch, 1) and not n.same_size(batch, x4.shape[0]):
        return f"the tables are for {batch} samples and x has {x4.shape[0]}"
    if not n.same_size(heads, 1) and not n.same_size(heads, x4.shape[2]):
        return f"the tables are for {heads} heads and x has {x4.shape[2]}"
    if recipe.seq_start is None and not n.same_size(tokens, x4.shape[1]):
        return f"the tables are for {tokens} tokens and x has {x4.shape[1]}"
    return None


def _triton_refuses(x: Tensor, tables: Sequence[Tensor], recipe: Recipe) -> str | None:
    return problem(x, tables, recipe)


def _aiter_refuses(x: Tensor, tables: Sequence[Tensor], recipe: Recipe) -> str | None:
    from rocm_passes.kernels.aiter import rotary

    reason = problem(x, tables, recipe) or aiter_mismatch(recipe, x.dtype)
    if reason is not None:
        return reason
    a = call(x, tables, recipe, Eager(), contiguous=True)
    return rotary.refusal(a["x"], a["cos"], a["sin"], interleaved=a["interleaved"], rotated=a["width"])


def aiter_mismatch(recipe: Recipe, dtype: torch.dtype) -> str | None:
    if recipe.conjugate:
        return "aiter's kernel has no rotation by minus the angles"
    if recipe.seq_start is not None:
        return "only some tokens are rotated"
    if recipe.out_dtype is not dtype:
        return f"the result is {recipe.out_dtype} and x is {dtype}; aiter returns x's dtype"
    return None


def _real_refuses(x: Tensor, tables: Sequence[Tensor], recipe: Recipe) -> str | None:
    return None if recipe.complex else "the graph rotates in real numbers already"


def _aiter_note(target: Target, x: Tensor, tables: Sequence[Tensor], recipe: Recipe) -> str | None:
    from rocm_passes.kernels.aiter import rotary

    return rotary.numerics_note(x, arch=target.arch)


OPERATOR = Operator(
    "rotary",
    SCHEMA,
    reference,
    fake,
    lowerings=(Lowering("aiter", run=_aiter), Lowering("triton", run=_triton, launches=True)),
)

LOWERINGS = (
    Lowering(
        "aiter",
        requires=(needs_aiter,),
        refuses=_aiter_refuses,
        note=_aiter_note,
        write=writes("aiter"),
    ),
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.rotary.rotary")),
        refuses=_triton_refuses,
        write=writes("triton"),
    ),
    Lowering("real", refuses=_real_refuses, write=write_real),
    Lowering(
        "reference",
        requires=(needs_cpu,),
        refuses=_triton_refuses,
        write=writes("reference"),
    ),
)
