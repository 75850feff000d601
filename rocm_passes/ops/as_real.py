"""The real and imaginary parts of a complex tensor, as an operator that Inductor does not look into.

`aten.view_as_real` of a complex graph input would be such a view too, but Inductor answers every ATen call on
a complex tensor with a warning and a fallback.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rocm_passes.ops.operator import Operator


def reference(z: Tensor) -> Tensor:
    """z: complex [...]. Returns its parts [..., 2], contiguous, float32, or float64 of complex128."""
    return torch.view_as_real(z.resolve_conj()).clone(memory_format=torch.contiguous_format)


def fake(z: Tensor) -> Tensor:
    dtype = torch.float64 if z.dtype is torch.complex128 else torch.float32
    return torch.empty((*z.shape, 2), dtype=dtype, device=z.device)


AS_REAL = Operator("as_real", "(Tensor z) -> Tensor", reference, fake, ())
