"""Conv2d as ATen's convolution has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.conv3d import by
from rocm_passes.ops.operator import Call, Computation
from rocm_passes.ops.time_axis import out_size


@dataclass(frozen=True)
class Conv2d(Call):
    """The arguments of aten.convolution, x [N, C, H, W].

    channels_last: whether x, the weight and the result are channels-last in memory.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int
    channels_last: bool = True

    def of_aten(self) -> tuple[Any, ...]:
        """The arguments of aten.convolution."""
        *found, _ = self.arguments().values()
        return tuple(found)

    def pair(self, name: str) -> tuple[int, int]:
        """A list argument as (height, width); ATen lets one number stand for both."""
        values = tuple(getattr(self, name))
        return (values[0], values[-1])

    def has_numbers(self) -> bool:
        return all(isinstance(size, int) for t in (self.x, self.weight) for size in t.shape)

    def flops(self) -> float:
        """Floating-point operations of a call with numbers for sizes."""
        return float(2 * self._result_elements() * math.prod(self.weight.shape[1:]))

    def tensors_mib(self) -> float:
        """Input and result together, of a call with numbers for sizes."""
        return (math.prod(self.x.shape) + self._result_elements()) * self.x.itemsize / 2**20

    def _result_elements(self) -> int:
        names = ("stride", "padding", "dilation")
        dims = zip(self.x.shape[2:], self.weight.shape[2:], *map(self.pair, names), strict=True)
        return math.prod((self.x.shape[0], self.weight.shape[0], *(out_size(*dim) for dim in dims)))

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = str(self.x.dtype).removeprefix("torch.")
        stride, padding, dilation = map(self.pair, ("stride", "padding", "dilation"))
        words: list[Any] = [
            f"conv2d {dtype} x {by(self.x.shape)} w {by(self.weight.shape)}",
            f"pad {by(padding)}" if any(padding) else "",
            f"stride {by(stride)}" if set(stride) != {1} else "",
            f"dilation {by(dilation)}" if set(dilation) != {1} else "",
            f"groups {self.groups}" if self.groups != 1 else "",
            "channels-last" if self.channels_last else "",
            "tf32" if dtype == "float32" and torch.backends.cudnn.allow_tf32 else "",
        ]
        return " ".join(w for w in words if w)


CONV2D = Computation("conv2d", Conv2d)
