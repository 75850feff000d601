"""Which convolutions are worth the time of measuring."""

from __future__ import annotations

from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.conv_transposed import ConvTransposed
from rocm_passes.policy import bounds


def worth_measuring(call: Conv3d | Conv2d | ConvTransposed) -> bool:
    """Below both bounds a call takes some microseconds, and lowerings differ by noise."""
    enough = call.flops() >= bounds.WORTH_MEASURING.value
    return enough or call.tensors_mib() >= bounds.WORTH_MEASURING_MIB.value
