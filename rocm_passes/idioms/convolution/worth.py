"""Which convolutions are worth the time of measuring."""

from __future__ import annotations

from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d

#: Below both, floating-point operations and MiB of input and result (some microseconds), lowerings differ by noise.
WORTH_MEASURING, WORTH_MEASURING_MIB = 1e9, 8


def worth_measuring(call: Conv3d | Conv2d) -> bool:
    return call.flops() >= WORTH_MEASURING or call.tensors_mib() >= WORTH_MEASURING_MIB
