"""LayerNorm by the fused norm's kernel."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.layer_norm import LAYER_NORM, LayerNorm
from rocm_passes.target import Target


def run(call: LayerNorm) -> Tensor:
    from rocm_passes.kernels.triton.norms.norm import Norm, Operands, fused_norm

    operands = Operands(call.x, weight=call.weight, bias=call.bias)
    outs, _ = fused_norm(operands, Norm("layer", eps=call.eps, out_dtype=call.out_dtype))
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


TRITON = register(LAYER_NORM, "norms.norm", run, refuses=refuses, note=note)
