"""LayerNorm over the last dimension: y = (x - mean) * rsqrt(var + eps) * weight + bias.

Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.operator import Call, Operator
from rocm_passes.target import Target


@dataclass(frozen=True)
class LayerNorm(Call):
    """LayerNorm of x [..., D]. Returns [..., D] of out_dtype, contiguous.

    x: any float dtype and strides. weight, bias: [D], any float dtype, or None.
    rounds_between: the graph computes it step by step, in its own order; lowerings note it.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    out_dtype: torch.dtype
    rounds_between: bool = False


def reference(call: LayerNorm) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input)."""
    compute = torch.float64 if call.x.dtype is torch.float64 else torch.float32
    weight, bias = (None if t is None else t.to(compute) for t in (call.weight, call.bias))
    y = F.layer_norm(call.x.to(compute), call.x.shape[-1:], weight, bias, call.eps)
    return y.to(call.out_dtype).contiguous()


def fake(call: LayerNorm) -> Tensor:
    return torch.empty(call.x.shape, dtype=call.out_dtype, device=call.x.device)


def other_bits(call: LayerNorm, target: Target) -> str | None:
    """ATen's LayerNorm of 16-bit rows sums in another order than that of the same rows widened."""
    if call.x.dtype is not torch.float32:
        return f"x is {call.x.dtype}: ATen may not widen it as the graph does"
    return None


LAYER_NORM = Operator("layer_norm", LayerNorm, reference, fake, other_bits=other_bits)
