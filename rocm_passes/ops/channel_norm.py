"""RMSNorm over the channels (dim 1) of images and videos, with SiLU.

"l2":   n = x / max(||x||_2, eps)          F.normalize(x, dim=1): the VAEs of Wan, Qwen-Image, Hunyuan 1.5
"mean": n = x / sqrt(mean(x^2) + eps)      LTX-2's VAE
y = silu?(n * scale * gamma + bias)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops import frames
from rocm_passes.ops.frames import empty_joined, joined_by_copies, joined_by_kernel
from rocm_passes.ops.group_norm import with_bias
from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target, needs_import, needs_triton

SCHEMA = (
    "(Tensor x, Tensor? x_bias, Tensor? gamma, Tensor? bias, str form, float eps, float scale, bool silu, "
    "ScalarType? round_to, bool rounds_between, ScalarType out_dtype, " + frames.SCHEMA + ") -> Tensor"
)

#: Elements from which a norm that writes into a joined video is worth a kernel of its own.
LEAST_JOINED = 2**22


def reference(
    x: Tensor,
    x_bias: Tensor | None,
    gamma: Tensor | None,
    bias: Tensor | None,
    form: str,
    eps: float,
    scale: float,
    silu: bool,
    round_to: torch.dtype | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input).

    x: [N, C, *spatial], any float dtype and strides. gamma, bias: C elements along dim 1, any float dtype.
    x_bias: added to x before the norm, unrounded; None, or the bias of the convolution that made x.
    round_to: n is rounded to this dtype before scale and gamma, or None.
    rounds_between: the graph also rounds after them; lowerings say in their notes that they do not.
    front: frames [N, C, F, H, W] of out_dtype that stand before y's in the result, or None. repeat_first: how
    often y's first frame stands there instead.
    Returns out_dtype in x's strides where x is dense, else in those of `torch.empty_like(x)`; with frames in front,
    [N, C, F + T, H, W], channels-last where x is, else contiguous.
    """
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    wide = with_bias(x, x_bias, compute)
    if form == "l2":
        y = F.normalize(wide, dim=1, eps=eps)
    else:
        y = wide / torch.sqrt(wide.square().mean(1, keepdim=True) + eps)
    if round_to is not None:
        y = y.to(round_to).to(compute)
    y = y * scale
    along = (-1, *[1] * (x.dim() - 2))
    if gamma is not None:
        y = y * gamma.to(compute).reshape(along)
    if bias is not None:
        y = y + bias.to(compute).reshape(along)
    if silu:
        y = F.silu(y)
    x = settled(x)
    return joined_by_copies(front, repeat_first, x, y.to(out_dtype))


def fake(
    x: Tensor,
    x_bias: Tensor | None,
    gamma: Tensor | None,
    bias: Tensor | None,
    form: str,
    eps: float,
    scale: float,
    silu: bool,
    round_to: torch.dtype | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    return empty_joined(front, repeat_first, settled(x), out_dtype)


def _triton(
    x: Tensor,
    x_bias: Tensor | None,
    gamma: Tensor | None,
    bias: Tensor | None,
    form: Any,
    eps: float,
    scale: float,
    silu: bool,
    round_to: torch.dtype | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    from rocm_passes.kernels.triton.norms import channel_norm

    x = settled(x)

    def compute(out: Tensor | None) -> Tensor:
        return channel_norm.channel_norm(
            x,
            gamma,
            bias,
            form=form,
            eps=eps,
            scale=scale,
            silu=silu,
            round_before_weight=round_to is not None,
            out_dtype=out_dtype,
            x_bias=x_bias,
            out=out,
        )

    return joined_by_kernel(front, repeat_first, x, out_dtype, compute)


def _triton_refuses(x: Tensor, round_to: torch.dtype | None, **_: Any) -> str | None:
    from rocm_passes.kernels.triton.norms.channel_norm import MAX_CHANNELS

    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    if isinstance(x.shape[1], int) and x.shape[1] > MAX_CHANNELS:
        return f"{x.shape[1]} channels; at most {MAX_CHANNELS} are taken"
    return None


def _triton_note(target: Target, rounds_between: bool, **_: Any) -> str | None:
    if rounds_between:
        return "scale, weight and SiLU are computed in fp32 and rounded once, where the graph rounds each"
    return None


def _triton_pays(target: Target, x: Tensor, joins: bool = False, **_: Any) -> Verdict:
    """joins: the result stands behind other frames in a joined video."""
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    if not joins:
        # Alone the kernel is the faster one (docs/performance.md), but whole decodes on an H200 were not:
        # Inductor fuses the norm with pads and biases.
        return Verdict(False, "in whole decodes Inductor's fused code was no slower (measured on an H200)")
    size = math.prod(x.shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < LEAST_JOINED:
        return Verdict(False, f"below {LEAST_JOINED} elements it is left to Inductor to fuse (not measured)")
    return Verdict(True, f"written where it is read, which spares the copy of a video ({measured(target)})")


OPERATOR = Operator(
    "channel_norm",
    SCHEMA,
    reference,
    fake,
    lowerings=(
        Lowering(
            "triton",
            requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.channel_norm")),
            refuses=_triton_refuses,
            note=_triton_note,
            pays=_triton_pays,
            run=_triton,
            launches=True,
        ),
    ),
)
