"""RMSNorm of q and k, over each head or over all heads together, followed by the rotation, in one
launch.

    before   mean(x * x) -> + eps -> rsqrt -> x * . -> * weight -> rotation      (for q and for k)
    after    qk_norm_rotary(q, k, cos, sin, ...)

The norm over all heads (Wan, LTX) needs the whole row of H * D channels before any of it can be
rotated; one program holds it in registers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import TRITON_TYPE
from rocm_passes.kernels.triton.rotary.rotary_launch import HeadNorms, Rotation, launch_heads

# The widest row of H * D channels, in powers of two, that the registers of one program hold.
MAX_ROW = 32768


def qk_norm_rotary(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    rotation: Rotation,
    norms: HeadNorms,
    *,
    out_dtype: torch.dtype | None = None,
    outs: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor | None]:
    """RMSNorm of q and k, then `rotary`, in one launch; k may be None.

    q: [B, S, Hq, D], k: [B, S, Hk, D], tables and outputs as for `rotary`: tokens outside the
    tables are normalised only; `outs` may be slices of a joint buffer.
    Raises what `rotary` raises; ValueError for weights that do not fit, or a row of more than 32768
    channels.
    """
    norms = replace(
        norms,
        q_weight=_check_weight("q_weight", norms.q_weight, q, norms.across_heads),
        k_weight=None
        if k is None
        else _check_weight("k_weight", norms.k_weight, k, norms.across_heads),
    )
    if norms.across_heads:
        _check_row(max(x.shape[-2] for x in (q, k) if x is not None), q.shape[-1])
    return launch_heads(q, k, cos, sin, rotation, norms=norms, out_dtype=out_dtype, outs=outs)


def _check_weight(name: str, weight: Tensor | None, x: Tensor, across_heads: bool) -> Tensor | None:
    """The weight, contiguous, of as many elements as one mean covers."""
    if weight is None:
        return None
    expected = x.shape[-2] * x.shape[-1] if across_heads else x.shape[-1]
    if weight.dim() != 1 or weight.numel() != expected:
        raise ValueError(f"{name} {tuple(weight.shape)} must be 1-D of {expected} elements")
    if weight.dtype not in TRITON_TYPE:
        raise TypeError(
            f"{name} is {weight.dtype}: the rotary kernels take float32, float16 or bfloat16"
        )
    if weight.device != x.device:
        raise ValueError(f"{name} lies on {weight.device} and its tensor on {x.device}")
    return weight.contiguous()


def _check_row(heads: int, channels: int) -> None:
    if triton.next_power_of_2(heads) * triton.next_power_of_2(channels) > MAX_ROW:
        raise ValueError(
            f"a norm over {heads} heads of {channels} channels exceeds {MAX_ROW} channels"
        )
