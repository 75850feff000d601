"""conv2d as one launch of the Triton kernel, which reads upsampled pixels where they lie.

It is the convolution of a video of 1 frame.
"""

from __future__ import annotations

from typing import Any

from rocm_passes.kernels.aten.conv2d import DIRECT
from rocm_passes.kernels.aten.conv3d_steps import Writer, aten
from rocm_passes.kernels.aten.memory_format import as_the_graphs, channels_last
from rocm_passes.kernels.triton.convolution import conv3d, implicit_gemm_conv
from rocm_passes.kernels.triton.convolution.implicit_gemm_conv import KERNEL
from rocm_passes.kernels.triton.lowering import requires
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def write(b: Writer, call: Conv2d) -> Any:
    x, weight = (b(aten.unsqueeze.default, channels_last(b, t), 2) for t in (call.x, call.weight))
    made = _of_video(call, x, weight)
    y = b(aten.squeeze.dim, IMPLICIT_GEMM_CONV.write(b, made, "triton"), 2)
    return as_the_graphs(b, y, call.channels_last)


def refuses(call: Conv2d, target: Target) -> str | None:
    if call.transposed:
        return "it is transposed"
    reason = conv3d.refuses_kind(call, call.x.dtype)
    if reason is not None:
        return reason
    made = _of_video(call, call.x.unsqueeze(2), call.weight.unsqueeze(2))
    return implicit_gemm_conv.refuses(made, target)


def _of_video(call: Conv2d, x: Any, weight: Any) -> ImplicitGemmConv:
    return ImplicitGemmConv(
        x=x,
        front=None,
        weight=weight,
        bias=call.bias,
        upsample=call.upsample,
        **call.of_video(),
    )


TRITON = CONV2D.register(
    Lowering("triton", requires(KERNEL), refuses=refuses, write=write),
    before=DIRECT.name,
)
