"""act(gate) * x in one launch."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.ops.gated_activation import GATED_ACTIVATION, GatedActivation
from rocm_passes.ops.operator import Lowering, reference_note
from rocm_passes.target import needs_import, needs_triton

KERNEL = "rocm_passes.kernels.triton.activation.gated_activation_kernel"


def run(call: GatedActivation) -> Tensor:
    from rocm_passes.kernels.triton.activation.gated_activation_kernel import gated_activation

    return gated_activation(call.gate, call.x, call.act)


TRITON = GATED_ACTIVATION.register(
    Lowering(
        "triton",
        requires=(needs_triton, needs_import(KERNEL)),
        note=reference_note,
        run=run,
        launches=True,
    )
)
