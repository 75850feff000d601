"""conv2d as one launch of the Triton kernel: a video of 1 frame."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import inductor_prims
from torch._prims_common import make_contiguous_strides_for

from rocm_passes.kernels.aten.conv2d import channels_last
from rocm_passes.kernels.aten.conv3d_steps import LOW_PRECISION, Writer, aten
from rocm_passes.kernels.triton.convolution import implicit_gemm_conv
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def write(b: Writer, call: Conv2d) -> Any:
    x, weight = (b(aten.unsqueeze.default, channels_last(b, t), 2) for t in (call.x, call.weight))
    made = ImplicitGemmConv(x=x, front=None, weight=weight, bias=call.bias, **_parameters(call))
    y = b(aten.squeeze.dim, IMPLICIT_GEMM_CONV.write(b, made, "triton"), 2)
    if call.channels_last:
        return y
    return b(inductor_prims.force_stride_order, y, make_contiguous_strides_for(b.value(y).shape))


def refuses(call: Conv2d, target: Target) -> str | None:
    if call.transposed:
        return "it is transposed"
    if call.x.dtype not in LOW_PRECISION:
        return f"it computes in {call.x.dtype}; the kernel has been measured in 16 bits alone"
    if call.groups != 1:
        return f"groups={call.groups}; 1 is needed"
    if not all(isinstance(size, int) for t in call.tensors() for size in t.shape):
        return "its sizes are symbolic"
    n, c, h, w = call.x.shape
    o, per_group, kh, kw = call.weight.shape
    x = torch.empty(n, c, 1, h, w, dtype=call.x.dtype, device="meta")
    weight = torch.empty(o, per_group, 1, kh, kw, dtype=call.weight.dtype, device="meta")
    bias = None if call.bias is None else torch.empty(o, dtype=call.bias.dtype, device="meta")
    made = ImplicitGemmConv(x=x, front=None, weight=weight, bias=bias, **_parameters(call))
    return implicit_gemm_conv.refuses(made, target)


def _parameters(call: Conv2d) -> dict[str, Any]:
    return {
        "zeros": (0, 0),
        "stride": (1, *call.pair("stride")),
        "padding": call.pair("padding"),
        "dilation": (1, *call.pair("dilation")),
    }


TRITON = CONV2D.register(
    Lowering("triton", requires=implicit_gemm_conv.REQUIRES, refuses=refuses, write=write),
    before="direct",
)
