"""A 3-D convolution over cached frames and a chunk, read where they lie, padding included.

    y = conv3d(pad(upsampled(cat([front, x], 2))), weight, bias) + residual

Products of all taps are summed in float32 with bias and residual, and rounded once. A 2-D
convolution is one of 1 frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.aten_convolution import repeated
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.time_axis import out_size


@dataclass(frozen=True)
class ImplicitGemmConv(Call):
    """Returns [N, O, T', H', W'] in x's dtype or in out_dtype, channels-last.

    x: [N, C, T, H, W], any strides. front: [N, C, F, H, W], frames before x's, or None.
    weight: [O, C, kT, kH, kW]; a channels-last one is read as it is, others are copied at each
    call.
    bias: [O] or None. zeros: zero frames before and behind all others.
    stride, dilation: 3-tuples. padding: (H, W), zeros on both sides. upsample: (H, W), how often
    each pixel is repeated in front of the padding.
    residual: added to the result, of its shape and of any strides, or None.
    out_dtype: of the result: x's, or float32 for sums that are not rounded.
    """

    x: Tensor
    front: Tensor | None
    weight: Tensor
    bias: Tensor | None
    zeros: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    upsample: Sequence[int]
    residual: Tensor | None = None
    out_dtype: torch.dtype | None = None

    def shape(self) -> tuple[Any, ...]:
        """The result's."""
        frames = (
            self.x.shape[2] + (0 if self.front is None else self.front.shape[2]) + sum(self.zeros)
        )
        pixels = zip(self.x.shape[3:], self.upsample, self.padding, strict=True)
        sizes = (frames, *(size * factor + 2 * pad for size, factor, pad in pixels))
        out = [
            out_size(size, kernel, stride, 0, dilation)
            for size, kernel, stride, dilation in zip(
                sizes, self.weight.shape[2:], self.stride, self.dilation, strict=True
            )
        ]
        return (self.x.shape[0], self.weight.shape[0], *out)


def reference(call: ImplicitGemmConv) -> Tensor:
    """Plain torch. The bias is added by the library's convolution, in x's dtype or in out_dtype."""
    x = call.x if call.front is None else torch.cat([call.front, call.x], 2)
    x = repeated(x, call.upsample)
    h, w = call.padding
    compute = call.out_dtype or x.dtype
    bias = None if call.bias is None else call.bias.to(compute)
    padded, weight = F.pad(x, [w, w, h, h, *call.zeros]).to(compute), call.weight.to(compute)
    y = F.conv3d(padded, weight, bias, list(call.stride), 0, list(call.dilation))
    return fake(call).copy_(y if call.residual is None else y + call.residual)


def fake(call: ImplicitGemmConv) -> Tensor:
    last, dtype = torch.channels_last_3d, call.out_dtype or call.x.dtype
    return torch.empty(call.shape(), dtype=dtype, device=call.x.device, memory_format=last)


IMPLICIT_GEMM_CONV = Operator("implicit_gemm_conv", ImplicitGemmConv, reference, fake)
