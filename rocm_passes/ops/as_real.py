"""The real and imaginary parts of a complex tensor, as an operator that Inductor does not look
into.

`aten.view_as_real` of a complex graph input would be such a view too, but Inductor answers every
ATen call on a complex tensor with a warning and a fallback.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from rocm_passes.fx import aliasing
from rocm_passes.fx import nodes as n
from rocm_passes.ops.operator import Call, Operator


@dataclass(frozen=True)
class AsReal(Call):
    """z: complex [...]. Returns its parts [..., 2], contiguous, float32, or float64 of
    complex128.
    """

    z: Tensor


def reference(call: AsReal) -> Tensor:
    return torch.view_as_real(call.z.resolve_conj()).clone(memory_format=torch.contiguous_format)


def fake(call: AsReal) -> Tensor:
    dtype = torch.float64 if call.z.dtype is torch.complex128 else torch.float32
    return torch.empty((*call.z.shape, 2), dtype=dtype, device=call.z.device)


AS_REAL = Operator("as_real", AsReal, reference, fake)


def why_copied(node: fx.Node) -> str | None:
    """Why Inductor's code cannot view the complex tensor that a call reads, or None."""
    z = n.argument(node)
    if aliasing.root_of(z) in aliasing.inputs_written(z.graph):
        return "the graph writes into it"
    if n.tensor(z).is_conj():
        return "it is conjugated lazily"
    return None if n.tensor(z).is_contiguous() else "it is not contiguous"
