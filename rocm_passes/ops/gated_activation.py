"""act(gate) * x: the product inside a SwiGLU or GEGLU feed-forward. Shazeer, arXiv:2002.05202."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.fx.nodes import LOW_PRECISION
from rocm_passes.ops.operator import Call, Operator


@dataclass(frozen=True)
class GatedActivation(Call):
    """gate, x: of one shape and dtype. act: "silu", "gelu" or "gelu_tanh". Returns x's shape and
    dtype, contiguous.
    """

    gate: Tensor
    x: Tensor
    act: str

    @property
    def rounds_between(self) -> bool:
        """The graph rounds the activation too."""
        return self.x.dtype in LOW_PRECISION


def reference(call: GatedActivation) -> Tensor:
    """Computed in fp32, rounded once. Raises ValueError where the two differ in shape."""
    if call.gate.shape != call.x.shape:
        raise ValueError(f"gate is {list(call.gate.shape)} and x {list(call.x.shape)}")
    gate = call.gate.float()
    if call.act == "silu":
        activated = F.silu(gate)
    else:
        activated = F.gelu(gate, approximate="tanh" if call.act == "gelu_tanh" else "none")
    return (activated * call.x.float()).to(call.x.dtype).contiguous()


def fake(call: GatedActivation) -> Tensor:
    return torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)


GATED_ACTIVATION = Operator("gated_activation", GatedActivation, reference, fake)
