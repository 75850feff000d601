"""LayerNorm by the fused norm's kernel."""

from __future__ import annotations

import math

from torch import Tensor

from rocm_passes.ops.layer_norm import LAYER_NORM, LayerNorm
from rocm_passes.ops.operator import Lowering, Verdict, measured
from rocm_passes.target import Target, needs_import, needs_triton

#: Columns and elements from which on the kernel pays. Between two matrix products on an H200, with weight and bias:
#: 4608 x 3072 0.052 ms vs. Inductor's 0.078, 32760 x 5120 0.445 vs. 0.584.
MIN_WIDTH = 1024
MIN_ELEMENTS = 2**22


def run(call: LayerNorm) -> Tensor:
    from rocm_passes.kernels.triton.norms import norm

    outs, _ = norm.fused_norm(
        call.x, kind="layer", eps=call.eps, weight=call.weight, bias=call.bias, out_dtype=call.out_dtype
    )
    return outs[0]


def refuses(call: LayerNorm, target: Target) -> str | None:
    return too_wide(call.x)


def too_wide(x: Tensor) -> str | None:
    """Why the Triton norms refuse rows of x's width, or None."""
    from rocm_passes.kernels.triton.norms.norm_plan import MAX_WIDTH

    width = x.shape[-1]
    if isinstance(width, int) and width > MAX_WIDTH:
        return f"rows of {width} elements; at most {MAX_WIDTH} are taken"
    return None


def note(call: LayerNorm, target: Target) -> str | None:
    if call.rounds_between:
        return "it is computed in fp32 by the kernel's own steps, where the graph spells out others"
    return None


def pays(call: LayerNorm, target: Target) -> Verdict:
    no = no_gain(target, call.x, MIN_WIDTH, MIN_ELEMENTS)
    if no is not None:
        return no
    return Verdict(True, f"one pass over memory for Inductor's two ({measured(target)})")


def no_gain(target: Target, x: Tensor, width: int, elements: int) -> Verdict | None:
    """The verdict on rows below the size from which on a norm was measured to pay, or on a CPU; else None."""
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    columns, size = x.shape[-1], math.prod(x.shape)
    if not isinstance(columns, int) or not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if columns < width or size < elements:
        return Verdict(False, f"below {width} columns or {elements} elements it was not measured to pay")
    return None


TRITON = LAYER_NORM.register(
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
