"""Residual -> norm -> modulate over the last dimension, in one pass over the row.

    s     = x + gate * norm?(branch) * (branch_weight_offset + branch_weight)
    n     = norm(s) * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k        one output per (scale, shift) pair

Everything is computed in fp32 and rounded once, on the store. Any strides: leading dims are
collapsed where the operands' strides allow it, and a per-head view of a fused projection costs no
copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.norms.norm_kernel import fused_norm_kernel
from rocm_passes.kernels.triton.norms.norm_plan import (
    MAX_MODULATIONS,
    NormKind,
    NormTile,
    plan_launch,
)

Modulation = tuple[Tensor | None, Tensor | None]


def fused_norm(
    x: Tensor,
    *,
    kind: NormKind,
    eps: float = 0.0,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    branch_weight: Tensor | None = None,
    branch_weight_offset: float = 0.0,
    branch_eps: float | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
    modulations: Sequence[Modulation] = (),
    scale_offset: float = 1.0,
    out_dtype: torch.dtype | None = None,
    sum_dtype: torch.dtype | None = None,
    round_sum: bool = False,
    eps_kind: str = "add",
    tile: NormTile | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Residual, norm and modulation of the rows of `x` ([..., D], float32/float16/bfloat16, D up to
    65536).

    kind: "rms" or "layer" (no outputs without a norm: "none" gives the sum alone, and needs
    `sum_dtype`).
    branch: same shape as x up to broadcasting of leading dims. With `branch_eps` it is
        RMS-normalised first (times `branch_weight`): Z-Image, Lumina2, Mochi.
    gate, weight, bias, scale, shift, branch_weight: any float dtype, broadcastable to x.
    weight_offset, branch_weight_offset: 1.0 for Gemma's (1 + w).
    round_before_weight: the norm is rounded to x's dtype before the weight, as diffusers' RMSNorm
    does.
    modulations: up to two (scale, shift) pairs, each an output; none means one output, the norm
    itself.
    out_dtype: of the outputs; x's by default.
    sum_dtype: where given, s is returned in it as the second result.
    eps_kind: how eps guards the root of an RMSNorm: "add", "clamp" or "after_root" (`inverse_rms`).
    round_sum: the norm reads s rounded to `sum_dtype` (or x's dtype), as eager low precision does.

    Returns contiguous outputs and the sum. Raises TypeError on dtypes, ValueError on shapes and
    arguments.
    """
    if len(modulations) > MAX_MODULATIONS:
        raise ValueError(f"{len(modulations)} modulations; at most {MAX_MODULATIONS} are taken")
    (scale0, shift0), (scale1, shift1) = (*modulations, (None, None), (None, None))[:2]
    operands = (x, branch, gate, branch_weight, weight, bias, scale0, shift0, scale1, shift1)
    # Planning costs the host more than the launch: a call like an earlier one takes over its plan.
    plan = plan_launch(
        tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in operands),
        kind,
        float(eps),
        branch_eps,
        float(branch_weight_offset),
        float(weight_offset),
        round_before_weight,
        len(modulations),
        float(scale_offset),
        out_dtype,
        sum_dtype,
        round_sum,
        eps_kind,
        tile,
    )
    pointers = [x if t is None else t for t in operands]
    for k, (dtype, expand) in plan.copies.items():
        copied = pointers[k].to(dtype)
        pointers[k] = (copied.expand(plan.shape) if expand else copied).contiguous()
    outs = [
        torch.empty(plan.shape, dtype=plan.out_dtype, device=x.device) for _ in range(plan.outputs)
    ]
    total = None if sum_dtype is None else torch.empty(plan.shape, dtype=sum_dtype, device=x.device)
    if plan.blocks == 0:
        return outs, total
    spare = outs[0] if total is None else total
    stored = (spare, *outs, spare, spare)[:3]
    launch(
        fused_norm_kernel,
        (plan.blocks,),
        *pointers,
        *stored,
        *plan.integers,
        **plan.constexprs,
        num_warps=plan.num_warps,
    )
    return outs, total
