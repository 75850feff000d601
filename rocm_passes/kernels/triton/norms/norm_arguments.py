"""What the fused norm is given: its operands, and what it computes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NormKind = Literal["rms", "layer", "none"]


class Operands(NamedTuple):
    """What the kernel reads, in its order.

    x: [..., D], float32, float16 or bfloat16, D up to 65536. branch: of x's shape, up to
    broadcasting of leading dims. The others: any float dtype, broadcastable to x.
    """

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None
    branch_weight: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale0: Tensor | None = None
    shift0: Tensor | None = None
    scale1: Tensor | None = None
    shift1: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """What is computed of the operands.

    kind: "rms" or "layer" (no outputs without a norm: "none" gives the sum alone, and needs
        `sum_dtype`).
    branch_eps: where given, the branch is RMS-normalised first (times `branch_weight`): Z-Image,
        Lumina2, Mochi.
    weight_offset, branch_weight_offset: 1.0 for Gemma's (1 + w).
    round_before_weight: the norm is rounded to x's dtype before the weight, as diffusers' RMSNorm
        does.
    modulations: how many (scale, shift) pairs give an output each, up to two; 0 means one output,
        the norm itself.
    out_dtype: of the outputs; x's by default.
    sum_dtype: where given, the sum is returned in it as the second result.
    round_sum: the norm reads the sum rounded to `sum_dtype` (or x's dtype), as eager low precision
        does.
    eps_kind: how eps guards the root of an RMSNorm: "add", "clamp" or "after_root" (`inverse_rms`).
    """

    kind: NormKind
    eps: float = 0.0
    branch_eps: float | None = None
    branch_weight_offset: float = 0.0
    weight_offset: float = 0.0
    round_before_weight: bool = False
    modulations: int = 0
    scale_offset: float = 1.0
    out_dtype: torch.dtype | None = None
    sum_dtype: torch.dtype | None = None
    round_sum: bool = False
    eps_kind: str = "add"

    @property
    def outputs(self) -> int:
        return 0 if self.kind == "none" else max(self.modulations, 1)
