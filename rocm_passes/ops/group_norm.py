"""GroupNorm of images and videos, with SiLU, and with the multiplier and addend of SpatialNorm3D.

    y = silu?((group_norm(x) * weight + bias) * multiplier + addend)

Wu and He, "Group Normalization", 2018, arXiv:1803.08494.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.frames import empty_joined, joined_by_copies
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.strides import settled


@dataclass(frozen=True)
class GroupNorm(Call):
    """Returns out_dtype in x's strides where x is dense, else in those of `torch.empty_like(x)`;
    with frames in front, [N, C, F + T, H, W], channels-last where x is, else contiguous.

    x: [N, C, *spatial], any float dtype and strides. weight, bias: [C]. multiplier, addend:
    broadcast to x.
    x_bias: added to x before the norm, unrounded; None, or the bias of the convolution that made x.
    rounds_between: the graph rounds between these steps; lowerings say in their notes that they do
    not.
    pixel_index: [*spatial], int32 or int64: multiplier and addend are [N, C, *other], and each of
    x's pixels takes their pixel of that number (nearest upsampling, not written out); None: they
    are broadcast.
    front: frames [N, C, F, H, W] of out_dtype that stand before y's in the result, or None.
    repeat_first: how often y's first frame stands there instead.
    """

    x: Tensor
    x_bias: Tensor | None
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    silu: bool
    multiplier: Tensor | None
    addend: Tensor | None
    rounds_between: bool
    out_dtype: torch.dtype
    pixel_index: Tensor | None = None
    front: Tensor | None = None
    repeat_first: int = 0


def reference(call: GroupNorm) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input), rounded once."""
    compute = torch.float64 if call.x.dtype is torch.float64 else torch.float32
    weight, bias = (None if t is None else t.to(compute) for t in (call.weight, call.bias))
    # From a contiguous copy: on a CPU, torch's channels-last GroupNorm loses a large mean's digits.
    x = with_bias(call.x, call.x_bias, compute).contiguous()
    y = F.group_norm(x, call.groups, weight, bias, call.eps)
    if call.multiplier is not None:
        y = y * taken(call.multiplier, call.pixel_index).to(compute)
    if call.addend is not None:
        y = y + taken(call.addend, call.pixel_index).to(compute)
    if call.silu:
        y = F.silu(y)
    return joined_by_copies(call.front, call.repeat_first, settled(call.x), y.to(call.out_dtype))


def taken(given: Tensor, pixel_index: Tensor | None) -> Tensor:
    """`given` [N, C, *other] as the pixels that pixel_index [*spatial] names: [N, C, *spatial]."""
    if pixel_index is None:
        return given
    return given.flatten(2)[:, :, pixel_index.reshape(-1)].reshape(
        *given.shape[:2], *pixel_index.shape
    )


def with_bias(x: Tensor, x_bias: Tensor | None, compute: torch.dtype) -> Tensor:
    wide = x.to(compute)
    return wide if x_bias is None else wide + x_bias.to(compute).reshape(-1, *[1] * (x.dim() - 2))


def fake(call: GroupNorm) -> Tensor:
    return empty_joined(call.front, call.repeat_first, settled(call.x), call.out_dtype)


GROUP_NORM = Operator("group_norm", GroupNorm, reference, fake)
