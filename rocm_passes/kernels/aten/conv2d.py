"""The library's convolution: its input and weight channels-last, or as they are.

Upsampled pixels are written first: libraries read none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rocm_passes.kernels.aten.memory_format import channels_last
from rocm_passes.kernels.aten.upsampled import upsampled
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def write(b: Any, call: Conv2d) -> Any:
    x = upsampled(b, call.x, call.upsample)
    made = replace(call, x=channels_last(b, x), weight=channels_last(b, call.weight))
    return b(torch.ops.aten.convolution.default, *made.of_aten())


def refuses(call: Conv2d, target: Target) -> str | None:
    return None if call.channels_last else "the graph's convolutions are not channels-last"


def write_direct(b: Any, call: Conv2d) -> Any:
    made = replace(call, x=upsampled(b, call.x, call.upsample))
    return b(torch.ops.aten.convolution.default, *made.of_aten())


def refuses_direct(call: Conv2d, target: Target) -> str | None:
    return "the graph's convolutions are channels-last" if call.channels_last else None


CHANNELS_LAST = CONV2D.register(Lowering("channels_last", refuses=refuses, write=write))
DIRECT = CONV2D.register(Lowering("direct", refuses=refuses_direct, write=write_direct))
