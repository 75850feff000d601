"""Residual -> norm -> modulate over the last dimension, in one pass over the row.

    s     = x + gate * norm?(branch) * (branch_weight_offset + branch_weight)
    n     = norm(s) * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k        one output per (scale, shift) pair

Everything is computed in fp32 and rounded once, on the store. Any strides: leading dims are
collapsed where the operands' strides allow it, and a per-head view of a fused projection costs no
copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.norms.norm_arguments import Norm, Operands
from rocm_passes.kernels.triton.norms.norm_kernel import fused_norm_kernel
from rocm_passes.kernels.triton.norms.norm_plan import NormTile, plan_launch

__all__ = ["Norm", "NormTile", "Operands", "fused_norm"]


def fused_norm(
    operands: Operands, norm: Norm, tile: NormTile | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Residual, norm and modulation of the rows of x.

    Returns contiguous outputs and the sum. Raises TypeError on dtypes, ValueError on shapes and
    arguments.
    """
    # Planning costs the host more than the launch: a call like an earlier one takes over its plan.
    plan = plan_launch(
        tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in operands), norm, tile
    )
    pointers: list[Tensor | None] = list(operands)
    for k, (dtype, expand) in plan.copies.items():
        given = operands[k]
        assert given is not None
        copied = given.to(dtype)
        pointers[k] = (copied.expand(plan.shape) if expand else copied).contiguous()
    device = operands.x.device
    outs = [
        torch.empty(plan.shape, dtype=plan.out_dtype, device=device) for _ in range(plan.outputs)
    ]
    total = None
    if norm.sum_dtype is not None:
        total = torch.empty(plan.shape, dtype=norm.sum_dtype, device=device)
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
