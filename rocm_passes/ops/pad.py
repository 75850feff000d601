"""Padding in front of a convolution: replicate, reflect, or zeros, after nearest upsampling or
without it.

    y = F.pad(upsampled(x), padding, mode)

`repeats` is the upsampling's factor along each dim. `skipped` frames are left out at the front of
what was upsampled. A causal video decoder (HunyuanVideo) repeats every frame but the first, which
is repeats[0] - 1 skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.operator import Call, Operator, same_bits


@dataclass(frozen=True)
class Pad(Call):
    """Returns x's dtype, dense, channels-last or contiguous.

    x: [N, C, H, W] or [N, C, T, H, W], any dtype and strides. padding: as F.pad's, the last dim
    first, none negative. mode: "replicate", "reflect" or "zeros". repeats: one factor for each of
    x's spatial dims.
    skipped: upsampled frames left out at the front. channels_last: the memory format of the result.
    """

    x: Tensor
    padding: Sequence[int]
    mode: str
    repeats: Sequence[int]
    skipped: int
    channels_last: bool

    @property
    def shape(self) -> tuple[Any, ...]:
        return padded_shape(self.x, self.padding, self.repeats, self.skipped)


def reference(call: Pad) -> Tensor:
    """Plain torch, exact."""
    x, padding, mode = call.x, call.padding, call.mode
    y = x
    for axis, repeat in enumerate(call.repeats):
        dim = axis + 2
        before, behind = padding[-2 * axis - 2], padding[-2 * axis - 1]
        skipped = call.skipped if axis == 0 else 0
        last = x.shape[dim] * repeat - skipped - 1
        at = torch.arange(-before, last + behind + 1, device=x.device)
        outside = (at < 0) | (at > last)
        if mode == "reflect":
            at = last - (last - at.abs()).abs()
        at = (at.clamp(0, max(last, 0)) + skipped) // repeat
        if mode == "zeros" and x.shape[dim] == 0:
            y = y.new_zeros((*y.shape[:dim], at.numel(), *y.shape[dim + 1 :]))
        else:
            y = y.index_select(dim, at)
        if mode == "zeros":
            y = y.masked_fill(outside.reshape(-1, *[1] * (x.dim() - dim - 1)), 0)
    return empty(x, y.shape, call.channels_last).copy_(y)


def fake(call: Pad) -> Tensor:
    return empty(call.x, call.shape, call.channels_last)


def padded_shape(
    x: Tensor, padding: Sequence[int], repeats: Sequence[int], skipped: int
) -> tuple[Any, ...]:
    sizes = [size * repeat for size, repeat in zip(x.shape[2:], repeats, strict=True)]
    sizes[0] -= skipped
    ends = [padding[i] + padding[i + 1] for i in range(len(padding) - 2, -1, -2)]
    return (*x.shape[:2], *(size + both for size, both in zip(sizes, ends, strict=True)))


def empty(
    x: Tensor, shape: Sequence[Any], channels_last: bool, dtype: torch.dtype | None = None
) -> Tensor:
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    layout = last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype or x.dtype, device=x.device, memory_format=layout)


PAD = Operator("pad", Pad, reference, fake, other_bits=same_bits)
