"""RMSNorm over the last dimension, alone or of a sum: aiter's `rmsnorm2d_fwd` and
`rmsnorm2d_fwd_with_add`.

    n = x · rsqrt(mean(x²) + eps) · weight

round_before_weight: x · rsqrt(…) is rounded to x's dtype first.

Behind one name aiter has two kernels. 16-bit rows of up to 8192 elements, weighted before rounding,
go to a HIP kernel that checks next to nothing; all else goes to "opus" (aiter 0.1.18), which takes
float32, any width and both roundings. Where aiter truncates bfloat16 instead of rounding,
truncating twice would cost more than one unit in the last place, so there the product is truncated
once, whatever the graph does.
Source: aiter/ops/rmsnorm.py, csrc/kernels/rmsnorm_quant_kernels.cu, csrc/include/opus.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rms_norm import (
    RMS_NORM,
    RmsNorm,
    another_eps,
    eps_on_gpu,
    epsilon,
    rounds_unlike,
)
from rocm_passes.target import Target

HIP_HIDDEN_MAX = 8192


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool) -> Tensor:
    """RMSNorm of `x` [..., C] with `weight` [C] of the same dtype; float16, bfloat16 or float32.

    Returns a fresh contiguous tensor of x's shape and dtype. Raises AiterContractError instead of
    calling aiter with what it does not take.
    """
    contract.enforce("rmsnorm2d_fwd", refusal(x, weight, round_before_weight=round_before_weight))
    if x.numel() == 0:
        return x.new_empty(x.shape)
    from aiter.ops.rmsnorm import rmsnorm2d_fwd

    with contract.device_guard(x):
        out: Tensor = rmsnorm2d_fwd(
            _input(x),
            weight,
            eps,
            use_model_sensitive_rmsnorm=int(_rounds_twice(x, round_before_weight)),
        )
    return out.reshape(x.shape).contiguous()


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
) -> tuple[Tensor, Tensor]:
    """`x + residual` [..., C] and its RMSNorm with `weight` [C], all of one dtype.

    Returns (norm, sum), both fresh, contiguous and of x's shape and dtype; the sum is rounded to
    that dtype. Raises AiterContractError instead of calling aiter with what it does not take.
    """
    reason = refusal(x, weight, residual, round_before_weight=round_before_weight)
    contract.enforce("rmsnorm2d_fwd_with_add", reason)
    out, total = x.new_empty(x.shape), x.new_empty(x.shape)
    if x.numel() == 0:
        return out, total
    from aiter.ops.rmsnorm import rmsnorm2d_fwd_with_add

    with contract.device_guard(x):
        rmsnorm2d_fwd_with_add(
            contract.rows(out),
            _input(x),
            # One of aiter's two kernels takes contiguous residuals only.
            contract.rows(residual).contiguous(),
            contract.rows(total),
            weight,
            eps,
            # By keyword: the seventh position changed its meaning in 0.1.17.
            use_model_sensitive_rmsnorm=int(_rounds_twice(x, round_before_weight)),
        )
    return out, total


def refusal(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, round_before_weight: bool
) -> str | None:
    """Why `rms_norm` can not take this call, with a residual `add_rms_norm`; None if it can."""
    return next(_violations(x, residual, weight, _rounds_twice(x, round_before_weight)), None)


def numerics_note(
    x: Tensor, *, round_before_weight: bool, add: bool = False, arch: str | None = None
) -> str | None:
    """Where `rms_norm`, or with `add` `add_rms_norm`, rounds otherwise than the graph did; None if
    nowhere. arch: as of x's device.
    """
    return contract.joined(_notes(x, add, round_before_weight, arch))


def _rounds_twice(x: Tensor, round_before_weight: bool, arch: str | None = None) -> bool:
    """Whether aiter is asked to round before the weight as well, as far as is known where
    `x` lies.
    """
    arch = arch or contract.architecture(x.device)
    truncates = arch is not None and contract.truncates(x.dtype, arch)
    return round_before_weight and not truncates


def _on_hip_kernel(x: Tensor, rounds_twice: bool) -> bool:
    return not rounds_twice and x.element_size() == 2 and x.shape[-1] <= HIP_HIDDEN_MAX


def _input(x: Tensor) -> Tensor:
    flat = contract.rows(x)
    # aiter narrows a row stride to int32, which overflows where a single row was sliced off a huge
    # tensor.
    return flat.clone(memory_format=torch.contiguous_format) if flat.shape[0] == 1 else flat


def _violations(
    x: Tensor, residual: Tensor | None, weight: Tensor, rounds_twice: bool
) -> Iterator[str]:
    yield from contract.available("rmsnorm2d_fwd" if residual is None else "rmsnorm2d_fwd_with_add")
    inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
    yield from contract.placement({**inputs, "weight": weight})
    yield from contract.kept_stores(contract.architecture(x.device))
    vectors = {"weight": weight}
    yield from contract.norm_inputs(x, residual, vectors, contract.FLOAT_DTYPES)
    yield from _kernel_violations(x, x.shape[-1], rounds_twice)


def _kernel_violations(x: Tensor, hidden: int, rounds_twice: bool) -> Iterator[str]:
    if _on_hip_kernel(x, rounds_twice):
        if not (contract.has("hip_rms_norm") or contract.has("opus")):
            yield (
                "this aiter has Composable Kernel's RMSNorm only: version 0.1.12 or newer is needed"
            )
        if hidden % 2:
            yield f"hidden size {hidden} is odd: aiter reads past the row's end"
        return
    if contract.has("opus"):
        return
    if x.dtype == torch.float32:
        yield "x is float32: aiter takes it from version 0.1.18 on"
    if hidden > HIP_HIDDEN_MAX:
        yield (
            f"hidden size {hidden} is over {HIP_HIDDEN_MAX}: aiter takes it from version 0.1.18 on"
        )
    yield (
        "the graph rounds before it multiplies by the weight: aiter can do so from version "
        "0.1.18 on"
    )


def _notes(x: Tensor, add: bool, round_before_weight: bool, arch: str | None) -> Iterator[str]:
    arch = arch or contract.architecture(x.device)
    rounds_twice = _rounds_twice(x, round_before_weight, arch)
    yield from contract.truncation_note(x.dtype, arch)
    if round_before_weight and not rounds_twice:
        yield (
            "aiter is asked to round after the weight only, where the graph rounds before it as "
            "well"
        )
    if add and not rounds_twice and x.dtype != torch.float32:
        # Past what its registers hold, aiter's kernel for wide rows reads the rounded sum back.
        part = "" if _on_hip_kernel(x, rounds_twice) else " (of very wide rows only a part so)"
        yield (f"aiter normalises the sum before it is rounded to {dtype_name(x.dtype)}{part}")
    if _on_hip_kernel(x, rounds_twice):
        yield "aiter's kernel is built with -ffast-math: NaN and infinity need not propagate"
    yield from contract.denormal_note(x.dtype)


def _run(call: RmsNorm) -> Tensor:
    assert call.weight is not None
    eps, before = epsilon(call.eps_tensor, call.eps), call.round_to is not None
    return rms_norm(call.x, call.weight.reshape(-1), eps, round_before_weight=before)


def _refuses(call: RmsNorm, target: Target) -> str | None:
    x, weight = call.x, call.weight
    if weight is None:
        return "the norm has no weight, and aiter's needs one"
    reason = unlike_aiters(call.bias, call.weight_offset, call.eps_kind)
    if reason is None and call.out_dtype is not x.dtype:
        reason = f"the result is {call.out_dtype} and x is {x.dtype}; aiter returns x's dtype"
    reason = reason or rounds_unlike(call.round_to, x) or eps_on_gpu(call.eps_tensor)
    return reason or refusal(x, weight, round_before_weight=call.round_to is not None)


def unlike_aiters(bias: Tensor | None, weight_offset: float, eps_kind: str) -> str | None:
    """What of an RMSNorm aiter's has not, or None."""
    if bias is not None:
        return "aiter's rms_norm has no bias"
    return "aiter's rms_norm has no (1 + weight) form" if weight_offset else another_eps(eps_kind)


def _note(call: RmsNorm, target: Target) -> str | None:
    own = numerics_note(call.x, arch=target.arch, round_before_weight=call.round_to is not None)
    return contract.joined(note for note in (own, reorders(call.rounds_between)) if note)


def reorders(rounds_between: bool) -> str | None:
    """Where the graph rounds between the steps or takes them in another order."""
    return (
        "aiter takes its own steps, where the graph spells out others" if rounds_between else None
    )


AITER = RMS_NORM.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=_refuses, note=_note, run=_run)
)
