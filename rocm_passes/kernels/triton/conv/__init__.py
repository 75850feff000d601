"""Convolutions in Triton: an implicit matrix product, channels-last, exact sums over all taps."""

from rocm_passes.kernels.triton.conv.call import Conv, refusal
from rocm_passes.kernels.triton.conv.conv import conv2d, conv3d, pack_weight
from rocm_passes.kernels.triton.conv.tiles import Tile, choose_tile

__all__ = ["Conv", "Tile", "choose_tile", "conv2d", "conv3d", "pack_weight", "refusal"]
