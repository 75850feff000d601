"""A transposed convolution as ATen has it, over [N, C, H, W] or [N, C, T, H, W]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.conv3d import by
from rocm_passes.ops.operator import Call, Computation

#: The spatial arguments, in ATen's order.
SPATIAL = ("stride", "padding", "dilation", "output_padding")


@dataclass(frozen=True)
class ConvTransposed(Call):
    """The arguments of aten.convolution with transposed=True; the weight is [C, O/groups, ...]."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    output_padding: Sequence[int]
    groups: int

    @property
    def channels_last(self) -> bool:
        """Measured as it is: no layout is asked for."""
        return False

    def of_aten(self) -> tuple[Any, ...]:
        """The arguments of aten.convolution."""
        before = (self.x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return (*before, True, self.output_padding, self.groups)

    def each(self, name: str) -> tuple[int, ...]:
        """A spatial argument for each dim; ATen lets one number stand for all."""
        values, rank = tuple(getattr(self, name)), self.x.dim() - 2
        return values * rank if len(values) == 1 else values

    def overlaps(self) -> str | None:
        """Why an output is a sum over several pixels of the input, or over none; None where it is
        of exactly one.
        """
        kernel = tuple(self.weight.shape[2:])
        if kernel != self.each("stride"):
            return f"kernel {by(kernel)} and stride {by(self.each('stride'))}: outputs overlap"
        if any(self.each("padding")) or any(self.each("output_padding")):
            return "it has padding"
        if any(d != 1 for d, k in zip(self.each("dilation"), kernel, strict=True) if k > 1):
            return f"dilation={self.each('dilation')}"
        return None

    def has_numbers(self) -> bool:
        return all(isinstance(size, int) for t in self.tensors() for size in t.shape)

    def flops(self) -> float:
        """Floating-point operations of a call with numbers for sizes."""
        return float(2 * math.prod(self.x.shape) * math.prod(self.weight.shape[1:]))

    def tensors_mib(self) -> float:
        """Input and result together, of a call with numbers for sizes."""
        return (math.prod(self.x.shape) + self._result_elements()) * self.x.itemsize / 2**20

    def _result_elements(self) -> int:
        sizes = [
            (s - 1) * stride - 2 * padding + dilation * (k - 1) + extra + 1
            for s, k, stride, padding, dilation, extra in zip(
                self.x.shape[2:], self.weight.shape[2:], *map(self.each, SPATIAL), strict=True
            )
        ]
        return math.prod((self.x.shape[0], self.weight.shape[1] * self.groups, *sizes))

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = str(self.x.dtype).removeprefix("torch.")
        usual = (1, 0, 1, 0)
        words = [f"conv_transposed {dtype} x {by(self.x.shape)} w {by(self.weight.shape)}"]
        words += [
            f"{name} {by(self.each(name))}"
            for name, value in zip(SPATIAL, usual, strict=True)
            if set(self.each(name)) != {value}
        ]
        words += [f"groups {self.groups}"] if self.groups != 1 else []
        tf32 = dtype == "float32" and torch.backends.cudnn.allow_tf32
        return " ".join([*words, "tf32"] if tf32 else words)


CONV_TRANSPOSED = Computation("conv_transposed", ConvTransposed)
