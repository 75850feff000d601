"""The convolution kernel as a lowering of its operator. The kernel allocates the result and
launches once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.target import Target

KERNEL = "convolution.implicit_gemm.conv"


def run(call: ImplicitGemmConv) -> Tensor:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.conv import conv3d

    return conv3d(call.x, call.weight, call.bias, **_others(call))


def refuses(call: ImplicitGemmConv, target: Target) -> str | None:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import refusal

    return refusal(call.x, call.weight, call.bias, **_others(call))


def _others(call: ImplicitGemmConv) -> dict[str, Any]:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv

    conv = Conv.of_idiom(call.zeros, call.stride, call.padding, call.dilation, call.upsample)
    conv = replace(conv, out_dtype=call.out_dtype)
    return {"conv": conv, "front": call.front, "residual": call.residual}


TRITON = register(IMPLICIT_GEMM_CONV, KERNEL, run, refuses=refuses)
