"""A residual and the norm of the sum, through aiter's `rmsnorm2d_fwd_with_add` (see rms_norm.py)
and `layernorm2d_fwd_with_add` (layer_norm.py).
"""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.aiter import contract, layer_norm, rms_norm
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rms_norm import eps_on_gpu, epsilon, rounds_unlike
from rocm_passes.target import Target


def run(call: FusedNorm) -> list[Tensor]:
    assert call.branch is not None
    eps, before = epsilon(call.eps_tensor, call.eps), call.round_to is not None
    weight, bias = _flat(call.weight), _flat(call.bias)
    if call.kind == "layer":
        out, total = layer_norm.add_layer_norm(call.x, call.branch, weight, bias, eps)
    else:
        assert weight is not None
        out, total = rms_norm.add_rms_norm(
            call.x, call.branch, weight, eps, round_before_weight=before
        )
    return [total, out] if call.keep_sum else [out]


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.reshape(-1)


def refuses(call: FusedNorm, target: Target) -> str | None:
    if call.kind == "none" or call.branch is None:
        return "aiter fuses a residual with a norm only"
    if call.gate is not None or call.branch_norm:
        return "aiter adds the residual as it is: no gate, no norm of the branch"
    if call.scale0 is not None or call.outputs != 1:
        return "aiter has no modulation after the norm"
    reason = _refuses_layer(call) if call.kind == "layer" else _refuses_rms(call)
    if reason is None and not call.x.dtype == call.sum_dtype == call.out_dtype:
        dtypes = f"x is {call.x.dtype}, the sum {call.sum_dtype}, the result {call.out_dtype}"
        reason = f"{dtypes}; aiter wants one dtype"
    return reason or eps_on_gpu(call.eps_tensor) or _refused_by_contract(call, call.branch)


def _refuses_rms(call: FusedNorm) -> str | None:
    if call.weight is None:
        return "the norm has no weight, and aiter's needs one"
    reason = rms_norm.unlike_aiters(call.bias, call.weight_offset, call.eps_kind)
    return reason or rounds_unlike(call.round_to, call.x)


def _refuses_layer(call: FusedNorm) -> str | None:
    if call.weight_offset:
        return "aiter's LayerNorm has no (1 + weight) form"
    if call.round_to is not None or call.round_product is not None:
        return "the graph rounds within the norm, and aiter's LayerNorm behind it"
    return None


def _refused_by_contract(call: FusedNorm, branch: Tensor) -> str | None:
    weight, bias = _flat(call.weight), _flat(call.bias)
    if call.kind == "layer":
        return layer_norm.refusal(call.x, weight, bias, branch)
    assert weight is not None
    before = call.round_to is not None
    return rms_norm.refusal(call.x, weight, branch, round_before_weight=before)


def note(call: FusedNorm, target: Target) -> str | None:
    if call.kind == "layer":
        own = layer_norm.numerics_note(call.x)
    else:
        before = call.round_to is not None
        own = rms_norm.numerics_note(call.x, round_before_weight=before, add=True, arch=target.arch)
    return contract.joined(note for note in (own, rms_norm.reorders(call.rounds_between)) if note)


AITER = FUSED_NORM.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=refuses, note=note, run=run)
)
