"""The convolution kernel as a lowering of its operator. The kernel allocates the result and
launches once.
"""

from __future__ import annotations

from torch import Tensor

from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target, needs_import, needs_triton

FOLDER = "rocm_passes.kernels.triton.convolution.implicit_gemm"
REQUIRES = (needs_triton, needs_import(f"{FOLDER}.conv"))


def run(call: ImplicitGemmConv) -> Tensor:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv
    from rocm_passes.kernels.triton.convolution.implicit_gemm.conv import conv3d

    conv = Conv.of_idiom(call.zeros, call.stride, call.padding, call.dilation)
    return conv3d(call.x, call.weight, call.bias, conv=conv, front=call.front)


def refuses(call: ImplicitGemmConv, target: Target) -> str | None:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv, refusal

    conv = Conv.of_idiom(call.zeros, call.stride, call.padding, call.dilation)
    return refusal(call.x, call.weight, call.bias, conv=conv, front=call.front)


TRITON = IMPLICIT_GEMM_CONV.register(
    Lowering("triton", requires=REQUIRES, refuses=refuses, run=run, launches=True)
)
