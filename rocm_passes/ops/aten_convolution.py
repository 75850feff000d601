"""The arguments of aten.convolution, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.call import Call
from rocm_passes.ops.time_axis import out_size


@dataclass(frozen=True)
class AtenConvolution(Call):
    """x: [N, C, *spatial]. weight: [O, C/groups, ...], of a transposed one [C, O/groups, ...]."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def of_aten(self) -> tuple[Any, ...]:
        """The arguments of aten.convolution."""
        return tuple(self.arguments().values())[:9]

    def each(self, name: str) -> tuple[int, ...]:
        """A list argument, one number for each spatial dim; ATen lets one stand for all."""
        values = tuple(getattr(self, name))
        return values * self.rank() if len(values) == 1 else values

    def rank(self) -> int:
        """How many spatial dims."""
        return self.x.dim() - 2

    def sizes_read(self) -> tuple[int, ...]:
        """Of the spatial dims, as the convolution sees them."""
        return tuple(self.x.shape[2:])

    def flops(self) -> float:
        """Floating-point operations of a call with numbers for sizes."""
        summed = math.prod(self.x.shape) if self.transposed else self._result_elements()
        return float(2 * summed * math.prod(self.weight.shape[1:]))

    def tensors_mib(self) -> float:
        """Input and result together, of a call with numbers for sizes."""
        return (math.prod(self.x.shape) + self._result_elements()) * self.x.itemsize / 2**20

    def _result_elements(self) -> int:
        channels = self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]
        return math.prod((self.x.shape[0], channels, *self._result_sizes()))

    def _result_sizes(self) -> Iterator[int]:
        names = ("stride", "padding", "dilation", "output_padding")
        lists = map(self.each, names)
        for size, kernel, stride, padding, dilation, extra in zip(
            self.sizes_read(), self.weight.shape[2:], *lists, strict=True
        ):
            if self.transposed:
                yield (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            else:
                yield out_size(size, kernel, stride, padding, dilation)


def repeated(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Each pixel of the last dims so often, one factor a dim (nearest upsampling)."""
    for dim, factor in enumerate(factors, x.dim() - len(factors)):
        if factor != 1:
            x = x.repeat_interleave(factor, dim)
    return x


def by(sizes: Sequence[int]) -> str:
    return "x".join(str(s) for s in sizes)


def in_words(call: Any, dtype: str, zeros: Sequence[int] = ()) -> str:
    """What a convolution does beside its shapes, as the file of measured choices names it.

    call: with one number a dim in stride, padding and dilation.
    """
    words = [
        f"pad {by(call.padding)}" if any(call.padding) else "",
        f"zero frames {by(zeros)}" if any(zeros) else "",
        f"stride {by(call.stride)}" if set(call.stride) != {1} else "",
        f"dilation {by(call.dilation)}" if set(call.dilation) != {1} else "",
        f"groups {call.groups}" if call.groups != 1 else "",
        "channels-last" if call.channels_last else "",
        in_tf32(dtype),
    ]
    return " ".join(word for word in words if word)


def in_tf32(dtype: str) -> str:
    return "tf32" if dtype == "float32" and torch.backends.cudnn.allow_tf32 else ""
