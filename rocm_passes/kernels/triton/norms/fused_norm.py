"""Residual, norm and modulation in one launch."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.kernels.triton.norms.layer_norm import too_wide
from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.ops.rms_norm import eps_on_gpu, epsilon, rounds_unlike
from rocm_passes.target import Target


def run(call: FusedNorm) -> list[Tensor]:
    from rocm_passes.kernels.triton.norms.norm import Norm, Operands, fused_norm

    # A sum that the graph rounds to another dtype than x's is stored even where nobody reads it:
    # the kernel takes the dtype of the rounding from it.
    stored = call.keep_sum or (call.branch is not None and call.sum_dtype is not call.x.dtype)
    tables = (call.scale0, call.shift0, call.scale1, call.shift1)
    outs, total = fused_norm(
        Operands(
            call.x, call.branch, call.gate, call.branch_weight, call.weight, call.bias, *tables
        ),
        Norm(
            call.kind,  # type: ignore[arg-type]
            eps=epsilon(call.eps_tensor, call.eps),
            branch_eps=epsilon(call.branch_eps_tensor, call.branch_eps)
            if call.branch_norm
            else None,
            branch_weight_offset=call.branch_weight_offset,
            weight_offset=call.weight_offset,
            round_before_weight=call.round_to is not None,
            modulations=call.outputs if any(t is not None for t in tables) else 0,
            scale_offset=call.scale_offset,
            out_dtype=call.out_dtype,
            sum_dtype=call.sum_dtype if stored else None,
            round_sum=call.branch is not None,
            eps_kind=call.eps_kind,
        ),
    )
    return [total, *outs] if call.keep_sum and total is not None else outs


def refuses(call: FusedNorm, target: Target) -> str | None:
    reason = eps_on_gpu(call.eps_tensor, call.branch_eps_tensor) or rounds_unlike(
        call.round_to, call.x
    )
    return reason or too_wide(call.x)


def note(call: FusedNorm, target: Target) -> str | None:
    steps = ["gate, norm and modulation"] if call.rounds_between else []
    steps += ["weight and bias"] if call.round_product is not None else []
    if steps:
        return (
            f"{', '.join(steps)} are computed in fp32 and rounded once, where the graph rounds each"
        )
    return None


TRITON = register(FUSED_NORM, "norms.norm", run, refuses=refuses, note=note)
