"""RMSNorm by the fused norm's kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.kernels.triton.norms.layer_norm import too_wide
from rocm_passes.ops.rms_norm import RMS_NORM, RmsNorm, eps_on_gpu, epsilon, rounds_unlike
from rocm_passes.target import Target


def run(call: RmsNorm) -> Tensor:
    from rocm_passes.kernels.triton.norms.norm import Norm, Operands, fused_norm

    weight, bias = (None if t is None else t.reshape(-1) for t in (call.weight, call.bias))
    norm = Norm(
        "rms",
        eps=epsilon(call.eps_tensor, call.eps),
        weight_offset=call.weight_offset,
        round_before_weight=call.round_to is not None,
        out_dtype=call.out_dtype,
        eps_kind=call.eps_kind,
    )
    outs, _ = fused_norm(Operands(call.x, weight=weight, bias=bias), norm)
    return outs[0]


def refuses(call: RmsNorm, target: Target) -> str | None:
    if call.x.dtype is torch.float64:
        return "x is float64"
    reason = eps_on_gpu(call.eps_tensor) or rounds_unlike(call.round_to, call.x)
    return reason or too_wide(call.x)


def note(call: RmsNorm, target: Target) -> str | None:
    if call.rounds_between:
        return (
            "it is computed in fp32 and rounded once, where the graph rounds between the steps "
            "or reorders them"
        )
    if call.round_product is not None:
        return "weight and bias are applied in fp32 and rounded once, where the graph rounds each"
    return None


TRITON = register(RMS_NORM, "norms.norm", run, refuses=refuses, note=note)
