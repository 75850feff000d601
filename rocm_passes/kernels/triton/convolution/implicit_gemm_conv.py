"""The convolution kernel as a lowering of its operator. The kernel allocates the result and
launches once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.target import Target

if TYPE_CHECKING:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv

KERNEL = "convolution.implicit_gemm.conv"


def run(call: ImplicitGemmConv) -> Tensor:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.conv import conv3d

    return conv3d(call.x, call.weight, call.bias, conv=_conv(call), front=call.front)


def refuses(call: ImplicitGemmConv, target: Target) -> str | None:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import refusal

    return refusal(call.x, call.weight, call.bias, conv=_conv(call), front=call.front)


def _conv(call: ImplicitGemmConv) -> Conv:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv

    return Conv.of_idiom(call.zeros, call.stride, call.padding, call.dilation, call.upsample)


TRITON = register(IMPLICIT_GEMM_CONV, KERNEL, run, refuses=refuses)
