"""A tensor that Inductor computes where the graph has it, by a kernel of its own, as an operator.

What is cheap to compute Inductor computes where it is read: `aten.cat` of computed parts becomes
one kernel, for which everything that the parts are computed from is alive at once. Behind this
operator each part is computed before what comes next, and straight into its place: Inductor can
still choose where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rocm_passes.ops.operator import Call, Operator


@dataclass(frozen=True)
class Computed(Call):
    """x: any tensor. Returns it, dense and in the order of its strides; Inductor's code copies
    nothing.
    """

    x: Tensor


def reference(call: Computed) -> Tensor:
    return call.x.clone()


def fake(call: Computed) -> Tensor:
    return torch.empty_like(call.x)


COMPUTED = Operator("computed", Computed, reference, fake)
