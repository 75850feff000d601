"""act(gate) * x in one launch."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.gated_activation import GATED_ACTIVATION, GatedActivation
from rocm_passes.ops.operator import reference_note


def run(call: GatedActivation) -> Tensor:
    from rocm_passes.kernels.triton.activation.gated_activation_kernel import gated_activation

    return gated_activation(call.gate, call.x, call.act)


TRITON = register(GATED_ACTIVATION, "activation.gated_activation_kernel", run, note=reference_note)
