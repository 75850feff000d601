"""A residual and the RMSNorm of the sum, through aiter's `rmsnorm2d_fwd_with_add` (see
rms_norm.py).
"""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.aiter import contract, rms_norm
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rms_norm import eps_on_gpu, epsilon, rounds_unlike
from rocm_passes.target import Target


def run(call: FusedNorm) -> list[Tensor]:
    assert call.branch is not None and call.weight is not None
    eps, before = epsilon(call.eps_tensor, call.eps), call.round_to is not None
    out, total = rms_norm.add_rms_norm(
        call.x, call.branch, call.weight.reshape(-1), eps, round_before_weight=before
    )
    return [total, out] if call.keep_sum else [out]


def refuses(call: FusedNorm, target: Target) -> str | None:
    x, branch, weight = call.x, call.branch, call.weight
    if call.kind != "rms" or branch is None:
        return "aiter fuses a residual with an RMSNorm only"
    if call.gate is not None or call.branch_norm:
        return "aiter adds the residual as it is: no gate, no norm of the branch"
    if call.scale0 is not None or call.outputs != 1:
        return "aiter has no modulation after the norm"
    if weight is None:
        return "the norm has no weight, and aiter's needs one"
    reason = rms_norm.unlike_aiters(call.bias, call.weight_offset, call.eps_kind)
    if reason is None and not x.dtype == call.sum_dtype == call.out_dtype:
        dtypes = f"x is {x.dtype}, the sum {call.sum_dtype}, the result {call.out_dtype}"
        reason = f"{dtypes}; aiter wants one dtype"
    reason = reason or rounds_unlike(call.round_to, x) or eps_on_gpu(call.eps_tensor)
    before = call.round_to is not None
    return reason or rms_norm.add_refusal(
        x, branch, weight.reshape(-1), call.eps, round_before_weight=before
    )


def note(call: FusedNorm, target: Target) -> str | None:
    before = call.round_to is not None
    own = rms_norm.add_numerics_note(call.x, arch=target.arch, round_before_weight=before)
    return contract.joined(note for note in (own, rms_norm.reorders(call.rounds_between)) if note)


AITER = FUSED_NORM.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=refuses, note=note, run=run)
)
