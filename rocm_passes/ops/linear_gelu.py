"""A linear layer with a bias, and GELU of it: each way to compute it is written in plain ATen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.operator import Call, Computation


@dataclass(frozen=True)
class LinearGelu(Call):
    """gelu(added + x @ weight) as `shape`. x: [M, K]. weight: [K, N]. added: [N], the bias.

    approximate: as of torch.nn.functional.gelu.
    """

    x: Tensor
    weight: Tensor
    added: Tensor
    shape: Sequence[Any]
    approximate: str

    @property
    def channels_last(self) -> bool:
        """As of convolutions that are measured: its operands are no images."""
        return False

    def flops(self) -> float:
        """Floating-point operations of the product, of a call with numbers for sizes."""
        return float(2 * math.prod(self.x.shape) * self.weight.shape[1])

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.x.dtype)
        (rows, channels), width = self.x.shape, self.weight.shape[1]
        return f"linear_gelu {dtype} {rows}x{channels} to {width} {self.approximate}"


LINEAR_GELU = Computation("linear_gelu", LinearGelu)
