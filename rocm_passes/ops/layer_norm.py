"""LayerNorm over the last dimension: y = (x - mean) * rsqrt(var + eps) * weight + bias.

Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.operator import Call, Operator


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


LAYER_NORM = Operator("layer_norm", LayerNorm, reference, fake)
