"""Residual, norm and modulation in one launch."""

from __future__ import annotations

import math

from torch import Tensor

from rocm_passes.kernels.triton.norms.layer_norm import no_gain, too_wide
from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.ops.operator import Lowering, Verdict, measured
from rocm_passes.ops.rms_norm import eps_on_gpu, epsilon, rounds_unlike
from rocm_passes.target import Target, needs_import, needs_triton

#: Columns and elements from which on a chain pays: in blocks on an H200 it does from 512 x 3072 on (FLUX's and
#: Qwen-Image's text stream); smaller ones have not been measured.
MIN_WIDTH = 1024
MIN_ELEMENTS = 2**20
#: Rows from which on a chain with a norm of the branch pays at both widths measured (2304 and 3840, on an H200): 0.73
#: to 1.00 of Inductor's time, with Z-Image's norm behind, with Gemma's and with none. Of fewer rows 0.78 to 1.20.
MIN_ROWS_WITH_BRANCH_NORM = 3072


def run(call: FusedNorm) -> list[Tensor]:
    from rocm_passes.kernels.triton.norms import norm

    pairs = call.modulations
    # A sum that the graph rounds to another dtype than x's is stored even where nobody reads it: the
    # kernel takes the dtype of the rounding from it.
    stored = call.keep_sum or (call.branch is not None and call.sum_dtype is not call.x.dtype)
    outs, total = norm.fused_norm(
        call.x,
        kind=call.kind,  # type: ignore[arg-type]
        eps=epsilon(call.eps_tensor, call.eps),
        branch=call.branch,
        gate=call.gate,
        branch_weight=call.branch_weight,
        branch_weight_offset=call.branch_weight_offset,
        branch_eps=epsilon(call.branch_eps_tensor, call.branch_eps) if call.branch_norm else None,
        weight=call.weight,
        bias=call.bias,
        weight_offset=call.weight_offset,
        round_before_weight=call.round_to is not None,
        modulations=[] if all(t is None for pair in pairs for t in pair) else pairs,
        scale_offset=call.scale_offset,
        out_dtype=call.out_dtype,
        sum_dtype=call.sum_dtype if stored else None,
        round_sum=call.branch is not None,
        eps_kind=call.eps_kind,
    )
    return [total, *outs] if call.keep_sum and total is not None else outs


def refuses(call: FusedNorm, target: Target) -> str | None:
    reason = eps_on_gpu(call.eps_tensor, call.branch_eps_tensor) or rounds_unlike(call.round_to, call.x)
    return reason or too_wide(call.x)


def note(call: FusedNorm, target: Target) -> str | None:
    steps = ["gate, norm and modulation"] if call.rounds_between else []
    steps += ["weight and bias"] if call.round_product is not None else []
    if steps:
        return f"{', '.join(steps)} are computed in fp32 and rounded once, where the graph rounds each"
    return None


def pays(call: FusedNorm, target: Target) -> Verdict:
    # Blocks and sites on an H200 (docs/performance.md). LayerNorm: Qwen-Image's four chains 75 -> 48 us of the device.
    # RMSNorm: with a norm of the branch (Z-Image) 90 -> 64 us; without (LTX) Inductor's own code was the faster one.
    no = no_gain(target, call.x, MIN_WIDTH, MIN_ELEMENTS)
    if no is not None:
        return no
    rows, layer = math.prod(call.x.shape[:-1]), call.kind == "layer"
    if call.branch_norm and not layer and rows < MIN_ROWS_WITH_BRANCH_NORM:
        return Verdict(
            False,
            f"with a norm of the branch and {rows} rows, below {MIN_ROWS_WITH_BRANCH_NORM}, Inductor's own code was "
            "about as fast or faster on an H200",
        )
    if call.branch_norm or (layer and (call.branch is not None or call.scale0 is not None)):
        return Verdict(True, f"one pass over memory for Inductor's two or more ({measured(target)})")
    return Verdict(False, "with an RMSNorm Inductor's own code was as fast or faster on an H200")


TRITON = FUSED_NORM.register(
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.norm")),
        refuses=refuses,
        note=note,
        pays=pays,
        run=run,
        launches=True,
    )
)
