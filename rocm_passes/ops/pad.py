"""Padding in front of a convolution: replicate, reflect, or zeros, after nearest upsampling or without it.

    y = F.pad(upsampled(x), padding, mode)

`repeats` is the upsampling's factor along each dim. With `skipped`, the first of the upsampled frames are left
out: a causal video decoder repeats every frame but the first (HunyuanVideo), which is repeats[0] - 1 skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.target import Target, needs_import, needs_triton

SCHEMA = "(Tensor x, int[] padding, str mode, int[] repeats, int skipped, bool channels_last) -> Tensor"
#: Below this size Inductor is left to fuse the padding with what makes x.
LEAST = 2**22


def reference(
    x: Tensor, padding: Sequence[int], mode: str, repeats: Sequence[int], skipped: int, channels_last: bool
) -> Tensor:
    """Plain torch, exact.

    x: [N, C, H, W] or [N, C, T, H, W], any dtype and strides. padding: as F.pad's, the last dim first, none
    negative. mode: "replicate", "reflect" or "zeros". repeats: one factor for each of x's spatial dims.
    skipped: upsampled frames left out at the front. Returns x's dtype, dense, channels-last or contiguous.
    """
    y = x
    for axis, repeat in enumerate(repeats):
        dim = axis + 2
        before, behind = padding[-2 * axis - 2], padding[-2 * axis - 1]
        last = x.shape[dim] * repeat - (skipped if axis == 0 else 0) - 1
        at = torch.arange(-before, last + behind + 1, device=x.device)
        outside = (at < 0) | (at > last)
        if mode == "reflect":
            at = last - (last - at.abs()).abs()
        at = (at.clamp(0, max(last, 0)) + (skipped if axis == 0 else 0)) // repeat
        if mode == "zeros" and x.shape[dim] == 0:
            y = y.new_zeros((*y.shape[:dim], at.numel(), *y.shape[dim + 1 :]))
        else:
            y = y.index_select(dim, at)
        if mode == "zeros":
            y = y.masked_fill(outside.reshape(-1, *[1] * (x.dim() - dim - 1)), 0)
    return empty(x, y.shape, channels_last).copy_(y)


def fake(
    x: Tensor, padding: Sequence[int], mode: str, repeats: Sequence[int], skipped: int, channels_last: bool
) -> Tensor:
    return empty(x, padded_shape(x, padding, repeats, skipped), channels_last)


def padded_shape(x: Tensor, padding: Sequence[int], repeats: Sequence[int], skipped: int) -> tuple[Any, ...]:
    sizes = [size * repeat for size, repeat in zip(x.shape[2:], repeats, strict=True)]
    sizes[0] -= skipped
    ends = [padding[i] + padding[i + 1] for i in range(len(padding) - 2, -1, -2)]
    return (*x.shape[:2], *(size + both for size, both in zip(sizes, ends, strict=True)))


def empty(x: Tensor, shape: Sequence[Any], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    layout = last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def is_a_copy(padding: Sequence[int], repeats: Sequence[int]) -> bool:
    return not any(padding) and all(r == 1 for r in repeats)


def _drop_refuses(padding: Sequence[int], repeats: Sequence[int], **_: Any) -> str | None:
    return None if is_a_copy(padding, repeats) else "it pads by more than nothing"


def _drop_pays(target: Target, **_: Any) -> Verdict:
    return Verdict(True, "it pads by nothing: a copy that is left out")


def _drop(b: Any, *, x: Any, **_: Any) -> Any:
    return x


def _triton(
    x: Tensor, padding: Sequence[int], mode: str, repeats: Sequence[int], skipped: int, channels_last: bool
) -> Tensor:
    from rocm_passes.kernels.triton.convolution import pad

    return pad.pad(x, padding, mode, repeats=repeats, skipped=skipped, channels_last=channels_last)


def _triton_refuses(x: Tensor, **_: Any) -> str | None:
    return None if x.itemsize <= 8 else f"x is {x.dtype}: its elements have {x.itemsize} bytes"


def _triton_pays(
    target: Target,
    x: Tensor,
    padding: Sequence[int],
    repeats: Sequence[int],
    skipped: int,
    channels_last: bool,
    **_: Any,
) -> Verdict:
    verdict = pays(target, padded_shape(x, padding, repeats, skipped), channels_last)
    if verdict.pays and all(r == 1 for r in repeats):
        return Verdict(
            False, f"without upsampling Inductor's copy is as fast, and may be fused ({measured(target)})"
        )
    return verdict


def pays(target: Target, shape: Sequence[Any], channels_last: bool) -> Verdict:
    """The rule for a padded result of this shape, whatever is written into it."""
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor fuses the padding with what makes its input")
    if not channels_last:
        return Verdict(False, "the convolution's input is contiguous: Inductor's copy needs no turning")
    size = math.prod(shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < LEAST:
        return Verdict(False, f"below {LEAST} elements it is left to Inductor to fuse (not measured)")
    # python -m rocm_passes.bench.pads (docs/tuning.md): HunyuanVideo's upsamplers 2.55 -> 0.59 ms and less.
    return Verdict(True, f"one pass, where Inductor crosses memory in the wrong order ({measured(target)})")


OPERATOR = Operator(
    "pad",
    SCHEMA,
    reference,
    fake,
    lowerings=(
        Lowering("drop", refuses=_drop_refuses, pays=_drop_pays, write=_drop),
        Lowering(
            "triton",
            requires=(needs_triton, needs_import("rocm_passes.kernels.triton.convolution.pad")),
            refuses=_triton_refuses,
            pays=_triton_pays,
            run=_triton,
            launches=True,
        ),
    ),
)
