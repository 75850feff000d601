"""A convolution by AMD's aiter, channels-last: conv2d over [N, C, H, W], conv3d over
[N, C, T, H, W].

Padding is of zeros, the same before and behind along each dim. Products are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.time_axis import out_size

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class AiterConv(Call):
    """Returns [N, O, ...] in x's dtype, channels-last.

    x: [N, C, ...] of any strides; channels-last it is read where it lies. weight: [O, C/groups,
    ...], of any strides. bias: [O] or None. stride, padding, dilation: one number for each spatial
    dim.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    def shape(self) -> tuple[Any, ...]:
        """The result's."""
        dims = zip(
            self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
        )
        return (self.x.shape[0], self.weight.shape[0], *(out_size(*dim) for dim in dims))


def reference(call: AiterConv) -> Tensor:
    """Plain torch, in the call's dtype."""
    convolve = F.conv2d if call.x.dim() == 4 else F.conv3d
    bias = None if call.bias is None else call.bias.to(call.x.dtype)
    y = convolve(
        call.x,
        call.weight,
        bias,
        list(call.stride),
        list(call.padding),
        list(call.dilation),
        call.groups,
    )
    return fake(call).copy_(y)


def fake(call: AiterConv) -> Tensor:
    x = call.x
    return torch.empty(
        call.shape(), dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST[x.dim()]
    )


AITER_CONV = Operator("aiter_conv", AiterConv, reference, fake)
