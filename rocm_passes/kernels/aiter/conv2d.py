"""conv2d through aiter, channels-last.

In a graph of another memory format the lowerings write copies of the input and of the result, which
a measurement counts.
"""

from __future__ import annotations

from typing import Any

from rocm_passes.kernels.aiter.aiter_conv import inexact, needs_conv
from rocm_passes.kernels.aiter.conv_contract import ConvEntry, refusal
from rocm_passes.kernels.aten.conv2d import CHANNELS_LAST
from rocm_passes.kernels.aten.memory_format import as_the_graphs, channels_last
from rocm_passes.kernels.aten.upsampled import upsampled
from rocm_passes.ops.aiter_conv import AITER_CONV, AiterConv
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def _write(b: Any, call: Conv2d, entry: ConvEntry) -> Any:
    x = channels_last(b, upsampled(b, call.x, call.upsample))
    y = AITER_CONV.write(b, _call(call, x), entry)
    return as_the_graphs(b, y, call.channels_last)


def _call(call: Conv2d, x: Any) -> AiterConv:
    stride, padding, dilation = map(call.each, ("stride", "padding", "dilation"))
    return AiterConv(x, call.weight, call.bias, stride, padding, dilation, call.groups)


def _refuses(call: Conv2d, target: Target, entry: ConvEntry) -> str | None:
    if call.transposed:
        return "it is transposed"
    return refusal(_call(call, call.input()), entry, target.arch)


def _register(name: str, entry: ConvEntry) -> None:
    def write(b: Any, call: Conv2d) -> Any:
        return _write(b, call, entry)

    CONV2D.register(
        Lowering(
            name,
            requires=(needs_conv(entry),),
            refuses=lambda call, target: _refuses(call, target, entry),
            inexact=lambda call, target: inexact(entry),
            write=write,
        ),
        before=CHANNELS_LAST.name,
    )


_register("aiter_flydsl", "flydsl")
_register("aiter_triton", "triton")
_register("aiter_winograd", "winograd")
