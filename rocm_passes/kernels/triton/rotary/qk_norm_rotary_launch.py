"""RMSNorm of q and k, over each head or over all heads together, followed by the rotation, in one
launch.

    before   mean(x * x) -> + eps -> rsqrt -> x * . -> * weight -> rotation      (for q and for k)
    after    qk_norm_rotary(q, k, cos, sin, ...)

The norm over all heads (Wan, LTX) needs the whole row of H * D channels before any of it can be
rotated; one program holds it in registers.
"""

import torch
import triton

from rocm_passes.kernels.triton.common import TRITON_TYPE
from rocm_passes.kernels.triton.rotary.rotary_launch import launch_heads

# The widest row of H * D channels, in powers of two, that the registers of one program hold.
MAX_ROW = 32768


def qk_norm_rotary(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool,
    eps_q: float,
    eps_k: float | None = None,
    across_heads: bool = False,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    round_before_weight: bool = False,
    round_after_norm: bool = True,
    rotary_dim: int | None = None,
    conjugate: bool = False,
    seq_start: int | None = None,
    out_dtype: torch.dtype | None = None,
    out_q: torch.Tensor | None = None,
    out_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RMSNorm of q and k, then `rotary`, in one launch; k may be None.

    q: [B, S, Hq, D], k: [B, S, Hk, D], tables, `rotary_dim`, `conjugate`, `seq_start` and outputs
    as for `rotary`: tokens outside the tables are normalised only; `out_q`, `out_k` may be slices
    of a joint buffer.
    across_heads: one mean over the H * D channels of a token, weights [H*D]; else one per head,
    weights [D].
    eps_k: eps_q where None. Statistics and products are fp32.
    round_before_weight: x * rstd is rounded to x's dtype before the weight multiplies it (as
    diffusers does).
    round_after_norm: the normalised value is rounded to x's dtype before the rotation. Raises what
    `rotary` raises; ValueError for weights that do not fit, or a row of more than 32768 channels.
    """
    eps_k = eps_q if eps_k is None else eps_k
    q_weight = _check_weight("q_weight", q_weight, q, across_heads)
    k_weight = None if k is None else _check_weight("k_weight", k_weight, k, across_heads)
    if across_heads:
        _check_row(max(x.shape[-2] for x in (q, k) if x is not None), q.shape[-1])
    return launch_heads(
        q, k, cos, sin, interleaved=interleaved, rotary_dim=rotary_dim, conjugate=conjugate,
        seq_start=seq_start, out_dtype=out_dtype, out_q=out_q, out_k=out_k,
        norm=True, across_heads=across_heads, q_weight=q_weight, k_weight=k_weight, eps_q=eps_q,
        eps_k=eps_k,
        round_before_weight=round_before_weight, round_after_norm=round_after_norm,
    )  # fmt: skip


def _check_weight(
    name: str, weight: torch.Tensor | None, x: torch.Tensor, across_heads: bool
) -> torch.Tensor | None:
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
