"""Rotary position embedding through aiter's `rope_cached_fwd`, and `rope_cached_2c_fwd` for q and k
at once.

    pairs (a, b) of channels:   a' = a·cos − b·sin,   b' = b·cos + a·sin
    interleaved: channels (2i, 2i+1)                  otherwise half-split: (i, i + R/2)

It computes in float32 and rounds once.

The rotated channels are the first R of a head's D. aiter's layout is [S, B, H, D] with any strides,
so [B, S, H, D] goes in as a view. Source: aiter/ops/rope.py, csrc/kernels/rope. Only the
out-of-place HIP functions are used: under Inductor the in-place ones leave q and k unrotated, and
the Triton one for [T, H, D] writes out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops import rotary as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

HALF_SPLIT, INTERLEAVED = 0, 1

# The widest vector that aiter's kernels load; they take its alignment for granted.
VECTOR = 4


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, rotated: int | None = None
) -> Tensor:
    """`x` [B, S, H, D] with its first `rotated` channels (all if None) rotated and the others
    copied.

    x is float16, bfloat16 or float32, with any strides but a unit last one. cos and sin are [1, S,
    1, F] of any of these dtypes, where F is R/2 (one entry per pair) or R (one per channel).
    Returns a fresh contiguous tensor. Raises AiterContractError instead of calling aiter with what
    it does not take.
    """
    reason = refusal(x, cos, sin, interleaved=interleaved, rotated=rotated)
    contract.enforce("rope_cached_fwd", reason)
    if x.numel() == 0:
        return x.new_empty(x.shape)
    from aiter.ops.rope import rope_cached_fwd

    with contract.device_guard(x):
        # Transposed, the output is allocated as contiguous [B, S, H, D], whatever the strides of x.
        out: Tensor = rope_cached_fwd(
            x.transpose(0, 1),
            *prepare_tables(cos, sin),
            int(interleaved),
            _one_entry_per_pair(x, cos, rotated),
            False,
            transpose_output=True,
        )
    return out.transpose(0, 1)


def rotary_pair(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, rotated: int | None = None
) -> tuple[Tensor, Tensor]:
    """`rotary` of q [B, S, H, D] and k [B, S, H', D] in one launch; only heads and strides may
    differ.
    """
    reason = pair_refusal(q, k, cos, sin, interleaved=interleaved, rotated=rotated)
    contract.enforce("rope_cached_2c_fwd", reason)
    if q.numel() == 0 or k.numel() == 0:
        return (
            rotary(q, cos, sin, interleaved=interleaved, rotated=rotated),
            rotary(k, cos, sin, interleaved=interleaved, rotated=rotated),
        )
    from aiter.ops.rope import rope_cached_2c_fwd

    with contract.device_guard(q):
        outputs: tuple[Tensor, Tensor] = rope_cached_2c_fwd(
            q.transpose(0, 1),
            k.transpose(0, 1),
            *prepare_tables(cos, sin),
            int(interleaved),
            _one_entry_per_pair(q, cos, rotated),
            False,
            transpose_output=True,
        )
    return outputs[0].transpose(0, 1), outputs[1].transpose(0, 1)


def prepare_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tables [1, S, 1, F] as aiter reads them: float32, contiguous, exactly [S, 1, 1, F].

    Views of what is so already: tables prepared once per graph and passed on as [1, S, 1, F] are
    never copied again.
    """
    return _prepared(cos), _prepared(sin)


def refusal(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, rotated: int | None = None
) -> str | None:
    """Why `rotary` can not take this call; None if it can."""
    return next(_violations({"x": x}, cos, sin, interleaved, rotated), None)


def pair_refusal(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, rotated: int | None = None
) -> str | None:
    """Why `rotary_pair` can not take this call; None if it can."""
    return next(_violations({"q": q, "k": k}, cos, sin, interleaved, rotated), None)


def numerics_note(x: Tensor) -> str | None:
    """Where `rotary` and `rotary_pair` compute otherwise than the graph did; None if nowhere."""
    return contract.joined(contract.denormal_note(x.dtype))


def table_violations(cos: Tensor, sin: Tensor, tokens: int) -> Iterator[str]:
    """One table for all samples and heads, of which aiter looks at the width only."""
    for name, table in (("cos", cos), ("sin", sin)):
        yield from contract.dtype(name, table, contract.FLOAT_DTYPES)
        if table.dim() != 4:
            yield (
                f"{name} has {table.dim()} dimensions: aiter reads garbage as the width of any "
                "but 4"
            )
        if table.shape[0] != 1:
            yield f"{name} differs between {table.shape[0]} samples: aiter has one table for all"
        if table.shape[2] != 1:
            yield f"{name} differs between {table.shape[2]} heads: aiter has one table for all"
        if table.shape[1] != tokens:
            yield (
                f"{name} has {table.shape[1]} rows for {tokens} tokens: aiter does not compare "
                "the two"
            )
    if cos.shape != sin.shape:
        yield f"cos has shape {contract.shape_name(cos)} and sin {contract.shape_name(sin)}"


def _prepared(table: Tensor) -> Tensor:
    flat = table.to(torch.float32).reshape(table.shape[1], table.shape[3])
    return flat.contiguous().view(table.shape[1], 1, 1, table.shape[3])


def _one_entry_per_pair(x: Tensor, cos: Tensor, rotated: int | None) -> bool:
    return bool(cos.shape[3] != (x.shape[3] if rotated is None else rotated))


def _violations(
    inputs: dict[str, Tensor], cos: Tensor, sin: Tensor, interleaved: bool, rotated: int | None
) -> Iterator[str]:
    yield from contract.available("rope_cached_fwd" if len(inputs) == 1 else "rope_cached_2c_fwd")
    yield from contract.placement({**inputs, "cos": cos, "sin": sin})
    yield from contract.kept_stores(contract.architecture(next(iter(inputs.values())).device))
    first_name, first = next(iter(inputs.items()))
    for name, t in inputs.items():
        yield from contract.dtype(name, t, contract.FLOAT_DTYPES)
        if t.dim() != 4:
            yield f"{name} has {t.dim()} dimensions: aiter wants [B, S, H, D]"
        yield from contract.same_dtype(name, t, first_name, first)
        if (t.shape[0], t.shape[1], t.shape[3]) != (first.shape[0], first.shape[1], first.shape[3]):
            shapes = f"{contract.shape_name(t)} and {first_name} {contract.shape_name(first)}"
            yield f"{name} has shape {shapes}: aiter goes by {first_name}'s for both"
    yield from table_violations(cos, sin, first.shape[1])
    channels = first.shape[3]
    width = channels if rotated is None else rotated
    yield from _rotation_violations(channels, width, cos.shape[3], interleaved)
    for name, t in inputs.items():
        yield from _layout_violations(name, t)


def _rotation_violations(
    channels: int, rotated: int, entries: int, interleaved: bool
) -> Iterator[str]:
    if rotated < 2 or rotated % 2 or rotated > channels:
        yield f"{rotated} of {channels} channels are rotated: aiter wants an even number, 2 or more"
    if entries not in (rotated, rotated // 2):
        yield f"the tables have {entries} entries per token: {rotated // 2} or {rotated} are needed"
    copied = 4 if interleaved else 2
    if (channels - rotated) % copied:
        yield (
            f"{channels - rotated} of {channels} channels are not rotated, no multiple of "
            f"{copied}: "
            "aiter leaves the last ones uninitialised"
        )


def _layout_violations(name: str, t: Tensor) -> Iterator[str]:
    if t.numel() == 0:
        return
    if t.stride(3) != 1:
        yield f"{name} has last stride {t.stride(3)}: aiter wants 1"
    strides = [stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True) if size > 1]
    if any(offset % VECTOR for offset in (t.storage_offset(), *strides)):
        yield (
            f"{name} has strides {tuple(t.stride())} from element {t.storage_offset()}: "
            f"aiter's vector loads want multiples of {VECTOR}"
        )
    yield from contract.within_int32(name, t)


def unlike_aiters(recipe: Recipe, dtype: torch.dtype) -> str | None:
    """What of a rotation of such an x aiter's has not, or None."""
    if recipe.conjugate:
        return "aiter's kernel has no rotation by minus the angles"
    if recipe.seq_start is not None:
        return "only some tokens are rotated"
    if recipe.out_dtype is not dtype:
        return f"the result is {recipe.out_dtype} and x is {dtype}; aiter returns x's dtype"
    return None


def _refuses(call: op.SpelledRotary, target: Target) -> str | None:
    reason = op.refuses(call, target) or unlike_aiters(call.recipe, call.x.dtype)
    if reason is not None:
        return reason
    own = replace(call, contiguous=True).prepared(Eager())
    return refusal(own.x, own.cos, own.sin, interleaved=own.interleaved, rotated=own.width)


def _note(call: op.SpelledRotary, target: Target) -> str | None:
    return numerics_note(call.x)


def _write(b: Any, call: op.SpelledRotary) -> Any:
    return op.ROTARY.write(b, replace(call, contiguous=True), AITER.name)


def _run(call: op.Rotary) -> Tensor:
    return rotary(call.x, call.cos, call.sin, interleaved=call.interleaved, rotated=call.width)


AITER = op.ROTARY.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=_refuses, note=_note, run=_run, write=_write)
)
