"""conv3d as one launch of the Triton kernel: frames are not joined and pixels not padded in memory.

The kernel reads channels-last tensors. In a graph of another memory format the lowering writes
copies of the input and of the result, which a measurement counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rocm_passes.kernels.aten.conv3d import compute_note
from rocm_passes.kernels.aten.conv3d_steps import LOW_PRECISION, Steps, Writer, aten
from rocm_passes.kernels.aten.memory_format import as_the_graphs
from rocm_passes.kernels.triton.convolution import implicit_gemm_conv
from rocm_passes.kernels.triton.lowering import requires
from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.time_axis import frames_of
from rocm_passes.target import Target


def write(b: Writer, call: Conv3d) -> Any:
    c = Steps(b, replace(call, channels_last=True))
    front, x = c.front_and_chunk()
    made = ImplicitGemmConv(x=x, front=front, weight=c.kernel(), bias=c.bias, **parameters(call))
    y = IMPLICIT_GEMM_CONV.write(b, made, "triton")
    if call.extra_frames:
        y = b(aten.slice.Tensor, y, 2, 0, b.value(y).shape[2] - call.extra_frames)
    y = c.finished(y)
    return as_the_graphs(b, y, call.channels_last)


def refuses(call: Conv3d, target: Target) -> str | None:
    compute = call.compute or call.x[0].dtype
    reason = refuses_kind(call, compute)
    if reason is not None:
        return reason
    x, weight = meta_video(call, compute), _meta(call.weight, compute)
    bias = None if call.bias is None else _meta(call.bias, call.bias.dtype)
    made = ImplicitGemmConv(x=x, front=None, weight=weight, bias=bias, **parameters(call))
    return implicit_gemm_conv.refuses(made, target)


def refuses_kind(call: Conv3d | Conv2d, compute: torch.dtype) -> str | None:
    """What the kernel's own check of the tensors would not say, or could not be asked."""
    if compute not in LOW_PRECISION:
        return f"it computes in {compute}; the kernel has been measured in 16 bits alone"
    if call.groups != 1:
        return f"groups={call.groups}; 1 is needed"
    return None if call.has_numbers() else "its sizes are symbolic"


def parameters(call: Conv3d) -> dict[str, Any]:
    """Frames in excess are zeros behind the others."""
    front, back = call.zeros
    return {
        "zeros": (front, back + call.extra_frames * call.stride[0]),
        "stride": call.stride,
        "padding": call.padding,
        "dilation": call.dilation,
        "upsample": (1, 1),
    }


def meta_video(call: Conv3d, dtype: torch.dtype) -> Tensor:
    """All frames of the call as one tensor without memory."""
    samples, channels, _, height, width = call.x[0].shape
    sizes = (samples, channels, frames_of(call.x), height, width)
    return torch.empty(sizes, dtype=dtype, device="meta")


def _meta(t: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(t.shape), dtype=dtype, device="meta")


TRITON = CONV3D.register(
    Lowering(
        "triton",
        requires=requires(implicit_gemm_conv.KERNEL),
        refuses=refuses,
        note=compute_note,
        write=write,
    ),
    before="direct",
)
