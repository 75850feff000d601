"""Conv2d as ATen's convolution has it, in a graph whose convolutions run in one memory format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rocm_passes.ops.operator import Call, Computation


@dataclass(frozen=True)
class Conv2d(Call):
    """The arguments of aten.convolution, x [N, C, H, W]."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


CONV2D = Computation("conv2d", Conv2d)
