"""GroupNorm of images and videos, with SiLU, and with the multiplier and addend of SpatialNorm3D.

    y = silu?((group_norm(x) * weight + bias) * multiplier + addend)

Wu and He, "Group Normalization", 2018, arXiv:1803.08494.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops import frames
from rocm_passes.ops.frames import empty_joined, joined_by_copies, joined_by_kernel
from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target, needs_aiter, needs_import, needs_triton

SCHEMA = (
    "(Tensor x, Tensor? x_bias, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? multiplier, "
    "Tensor? addend, bool rounds_between, ScalarType out_dtype, Tensor? pixel_index=None, "
    + frames.SCHEMA
    + ") -> Tensor"
)


def reference(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    pixel_index: Tensor | None = None,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input), rounded once.

    x: [N, C, *spatial], any float dtype and strides. weight, bias: [C]. multiplier, addend: broadcast to x.
    pixel_index: [*spatial], int32 or int64: multiplier and addend are [N, C, *other], and each of x's pixels takes
    their pixel of that number (nearest upsampling, not written out); None: they are broadcast.
    x_bias: added to x before the norm, unrounded; None, or the bias of the convolution that made x.
    rounds_between: the graph rounds between these steps; lowerings say in their notes that they do not.
    front: frames [N, C, F, H, W] of out_dtype that stand before y's in the result, or None. repeat_first: how
    often y's first frame stands there instead.
    Returns out_dtype in x's strides where x is dense, else in those of `torch.empty_like(x)`; with frames in front,
    [N, C, F + T, H, W], channels-last where x is, else contiguous.
    """
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    weight, bias = (None if t is None else t.to(compute) for t in (weight, bias))
    # From a contiguous copy: on a CPU, torch's channels-last GroupNorm loses a large mean's digits.
    y = F.group_norm(with_bias(x, x_bias, compute).contiguous(), groups, weight, bias, eps)
    if multiplier is not None:
        y = y * taken(multiplier, pixel_index).to(compute)
    if addend is not None:
        y = y + taken(addend, pixel_index).to(compute)
    if silu:
        y = F.silu(y)
    x = settled(x)
    return joined_by_copies(front, repeat_first, x, y.to(out_dtype))


def taken(given: Tensor, pixel_index: Tensor | None) -> Tensor:
    """`given` [N, C, *other] as the pixels that pixel_index [*spatial] names: [N, C, *spatial]."""
    if pixel_index is None:
        return given
    return given.flatten(2)[:, :, pixel_index.reshape(-1)].reshape(*given.shape[:2], *pixel_index.shape)


def with_bias(x: Tensor, x_bias: Tensor | None, compute: torch.dtype) -> Tensor:
    wide = x.to(compute)
    return wide if x_bias is None else wide + x_bias.to(compute).reshape(-1, *[1] * (x.dim() - 2))


def fake(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    pixel_index: Tensor | None = None,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    return empty_joined(front, repeat_first, settled(x), out_dtype)


def _triton(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    pixel_index: Tensor | None = None,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    from rocm_passes.kernels.triton.norms import group_norm

    x = settled(x)

    def compute(out: Tensor | None) -> Tensor:
        return group_norm.group_norm(
            x,
            groups,
            weight,
            bias,
            eps,
            silu=silu,
            multiplier=multiplier,
            addend=addend,
            out_dtype=out_dtype,
            x_bias=x_bias,
            pixel_index=pixel_index,
            out=out,
        )

    return joined_by_kernel(front, repeat_first, x, out_dtype, compute)


def triton_note(target: Target, rounds_between: bool, **_: Any) -> str | None:
    return "the result is rounded once, where the graph also rounds before SiLU" if rounds_between else None


def triton_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    # Between two convolutions on an H200: 512 x 128 x 128 took 0.76 of Inductor's time contiguous and 0.87
    # channels-last, 128 x 1024 x 1024 0.58 and 0.60.
    least = 2**22
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    size = math.prod(x.shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < least:
        return Verdict(False, f"below {least} elements Inductor's own code is about as fast (H200)")
    return Verdict(
        True, f"from {least} elements on the kernel needs fewer passes over memory ({measured(target)})"
    )


def _aiter(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    pixel_index: Tensor | None = None,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> Tensor:
    from rocm_passes.kernels.aiter import group_norm

    return group_norm.group_norm(x, groups, weight, bias, eps)


def _aiter_refuses(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    rounds_between: bool,
    out_dtype: torch.dtype,
    pixel_index: Tensor | None = None,
    front: Tensor | None = None,
    repeat_first: int = 0,
) -> str | None:
    from rocm_passes.kernels.aiter import group_norm

    if any(extra is not None for extra in (x_bias, multiplier, addend)) or silu:
        return "aiter's GroupNorm has nothing after the norm: SiLU, multiplier or addend"
    if frames.has_front(front, repeat_first):
        return "aiter's GroupNorm writes a tensor of its own, not behind other frames"
    if out_dtype is not x.dtype:
        return f"the result is {out_dtype} and x is {x.dtype}; aiter returns x's dtype"
    return group_norm.refusal(x, groups, weight, bias, eps)


def _aiter_note(target: Target, x: Tensor, **_: Any) -> str | None:
    from rocm_passes.kernels.aiter import group_norm

    return group_norm.numerics_note(x, arch=target.arch)


def _aiter_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    # sglang#20170: 12x against eager torch on MI300X; against Inductor nothing is published.
    if x.dtype is torch.float32:
        return Verdict(False, "aiter's variance cancels in fp32 where the mean outweighs the spread")
    return Verdict(False, "published against eager torch only (sglang#20170), and not measured by us")


OPERATOR = Operator(
    "group_norm",
    SCHEMA,
    reference,
    fake,
    lowerings=(
        Lowering(
            "triton",
            requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.group_norm")),
            note=triton_note,
            pays=triton_pays,
            run=_triton,
            launches=True,
        ),
        Lowering(
            "aiter",
            requires=(needs_aiter,),
            refuses=_aiter_refuses,
            note=_aiter_note,
            pays=_aiter_pays,
            run=_aiter,
        ),
    ),
)
