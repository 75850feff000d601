"""RMSNorm over the channels (dim 1) of images and videos, with SiLU.

"l2":   n = x / max(||x||_2, eps)           F.normalize(x, dim=1): Wan, Qwen-Image, Hunyuan 1.5
"mean": n = x / sqrt(mean(x^2) + eps)       LTX-2
y = silu?(n * scale * gamma + bias)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.frames import empty_joined, joined_by_copies
from rocm_passes.ops.group_norm import with_bias
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.strides import settled


@dataclass(frozen=True)
class ChannelNorm(Call):
    """Returns out_dtype in x's strides where x is dense, else in those of `torch.empty_like(x)`;
    with frames in front, [N, C, F + T, H, W], channels-last where x is, else contiguous.

    x: [N, C, *spatial], any float dtype and strides. gamma, bias: C elements along dim 1, any float
    dtype.
    x_bias: added to x before the norm, unrounded; None, or the bias of the convolution that made x.
    form: "l2" or "mean". round_to: n is rounded to this dtype before scale and gamma, or None.
    rounds_between: the graph also rounds after them; lowerings say in their notes that they do not.
    front: frames [N, C, F, H, W] of out_dtype that stand before y's in the result, or None.
    repeat_first: how often y's first frame stands there instead.
    joins: the graph puts the result behind other frames, where it could be written at once.
    """

    x: Tensor
    x_bias: Tensor | None
    gamma: Tensor | None
    bias: Tensor | None
    form: str
    eps: float
    scale: float
    silu: bool
    round_to: torch.dtype | None
    rounds_between: bool
    out_dtype: torch.dtype
    front: Tensor | None = None
    repeat_first: int = 0
    joins: bool = False


def reference(call: ChannelNorm) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input)."""
    x = call.x
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    wide = with_bias(x, call.x_bias, compute)
    if call.form == "l2":
        y = F.normalize(wide, dim=1, eps=call.eps)
    else:
        y = wide / torch.sqrt(wide.square().mean(1, keepdim=True) + call.eps)
    if call.round_to is not None:
        y = y.to(call.round_to).to(compute)
    y = y * call.scale
    along = (-1, *[1] * (x.dim() - 2))
    if call.gamma is not None:
        y = y * call.gamma.to(compute).reshape(along)
    if call.bias is not None:
        y = y + call.bias.to(compute).reshape(along)
    if call.silu:
        y = F.silu(y)
    return joined_by_copies(call.front, call.repeat_first, settled(x), y.to(call.out_dtype))


def fake(call: ChannelNorm) -> Tensor:
    return empty_joined(call.front, call.repeat_first, settled(call.x), call.out_dtype)


CHANNEL_NORM = Operator("channel_norm", ChannelNorm, reference, fake)
