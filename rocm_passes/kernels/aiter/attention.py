"""Attention through aiter's `flash_attn_func`, and in 8 bits through
`flash_attn_fp8_pertensor_func`; attention_contract.py says what they are given.

    softmax(scale * q k^T) v      sums and softmax in float32, the weights rounded to q's dtype, the
                                  result rounded once
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rocm_passes.kernels.aiter import attention_contract as own
from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.attention import ATTENTION, Attention
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target

#: `how_v3_bf16_cvt`: to the nearest, ties to even. aiter's own default, 1, rounds ties up.
NEAREST_EVEN = 0

#: The 8-bit dtype that each architecture's kernel reads.
FP8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
#: Of the result's rms, for normally distributed q, k and v of 512 to 4096 tokens (simulated).
FP8_ERROR = 0.055


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool) -> Tensor:
    """q [B, H, Sq, 128], k and v [B, Hk, Sk, 128] in bfloat16, of any strides. Returns a fresh
    [B, H, Sq, 128], in memory [B, Sq, H, 128]. Raises AiterContractError instead of calling aiter
    with what it does not take.
    """
    contract.enforce("flash_attn_func", refusal(q, k, v, scale=scale, causal=causal))
    if q.numel() == 0:
        return _rows_like(q).transpose(1, 2)
    from aiter.ops.mha import flash_attn_func

    with own.calling("flash_attn_func", q, k, causal):
        out: Tensor = flash_attn_func(
            *map(own.as_rows, (q, k, v)),
            dropout_p=0.0,
            softmax_scale=scale,
            causal=causal,
            return_lse=False,
            how_v3_bf16_cvt=NEAREST_EVEN,
        )
    return out.transpose(1, 2)


def attention_fp8(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool) -> Tensor:
    """The same with q, k and v scaled into the range of an 8-bit dtype, one scale a tensor, and
    rounded to it.
    """
    function = "flash_attn_fp8_pertensor_func"
    contract.enforce(function, fp8_refusal(q, k, v, scale=scale, causal=causal))
    if q.numel() == 0:
        return _rows_like(q).transpose(1, 2)
    from aiter.ops.mha import flash_attn_fp8_pertensor_func

    dtype = FP8[contract.architecture(q.device) or ""]
    (rows, scales) = zip(*(quantised(t.transpose(1, 2), dtype) for t in (q, k, v)), strict=True)
    with own.calling(function, q, k, causal):
        out: Tensor = flash_attn_fp8_pertensor_func(
            *rows, *scales, causal=causal, softmax_scale=scale
        )
    if out.dtype is not q.dtype:
        raise contract.AiterContractError.refused(function, f"it returns {out.dtype}")
    return out.transpose(1, 2)


def quantised(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensor in 8 bits, contiguous, and the number [1] that it must be multiplied by."""
    most = torch.finfo(dtype).max
    scale = (rows.abs().amax().to(torch.float32) / most).clamp(min=torch.finfo(torch.float32).tiny)
    small = (rows.to(torch.float32) / scale).clamp_(-most, most).to(dtype)
    return small.contiguous(), scale.reshape(1)


def _rows_like(q: Tensor) -> Tensor:
    batch, heads, queries, channels = q.shape
    return q.new_empty(batch, queries, heads, channels)


def refusal(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, arch: str | None = None
) -> str | None:
    """Why `attention` cannot take this call; None if it can."""

    def found() -> Iterator[str]:
        yield from contract.available("flash_attn_func")
        yield from own.violations(q, k, v, scale, causal, arch)

    return next(found(), None)


def fp8_refusal(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, arch: str | None = None
) -> str | None:
    """Why `attention_fp8` cannot take this call; None if it can."""

    def found() -> Iterator[str]:
        yield from contract.available("flash_attn_fp8_pertensor_func")
        yield from own.violations(q, k, v, scale, causal, arch)
        group = q.shape[1] // k.shape[1]
        if group & (group - 1):
            yield f"{group} query heads read one key head: the 8-bit kernel wants a power of 2"

    return next(found(), None)


def unlike_aiters(call: Attention) -> str | None:
    """What of an attention aiter's has not, or None."""
    if call.kernel == "math":
        return "the graph computes it in float32, and aiter rounds the weights to bfloat16"
    if call.bias is not None:
        return (
            "it has a mask or a bias: aiter's hand-written kernel takes none, and its CK kernel "
            "one [Sq, Sk] for all heads"
        )
    return None


def _refuses(call: Attention, target: Target) -> str | None:
    return unlike_aiters(call) or refusal(
        call.q, call.k, call.v, scale=call.scale, causal=call.causal, arch=target.arch
    )


def _refuses_fp8(call: Attention, target: Target) -> str | None:
    return unlike_aiters(call) or fp8_refusal(
        call.q, call.k, call.v, scale=call.scale, causal=call.causal, arch=target.arch
    )


def _note(call: Attention, target: Target) -> str | None:
    return "aiter's kernel sums in another order than the graph's, and flushes denormals to zero"


def _inexact_fp8(call: Attention, target: Target) -> str | None:
    return (
        f"q, k, v and the weights are rounded to 8 bits: an error of about {FP8_ERROR:.1%} of the "
        "result's rms"
    )


def _run(call: Attention) -> Tensor:
    return attention(call.q, call.k, call.v, scale=call.scale, causal=call.causal)


def _run_fp8(call: Attention) -> Tensor:
    return attention_fp8(call.q, call.k, call.v, scale=call.scale, causal=call.causal)


AITER = ATTENTION.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=_refuses, note=_note, run=_run)
)
AITER_FP8 = ATTENTION.register(
    Lowering(
        "aiter_fp8",
        requires=(needs_aiter,),
        refuses=_refuses_fp8,
        note=_note,
        run=_run_fp8,
        inexact=_inexact_fp8,
    )
)
