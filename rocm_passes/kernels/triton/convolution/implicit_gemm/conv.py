"""conv3d and conv2d, channels-last: padding, cached frames, upsampling and epilogue in one kernel.

    y = silu?(conv(pad(upsampled(cat([front, x]))), weight) + bias + residual)

All products of an output are summed in fp32 and rounded once, as in the libraries' conv3d. A sum of
one convolution for each temporal tap rounds each of them, which shows where frames cancel.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import INT32_MAX
from rocm_passes.kernels.triton.convolution.implicit_gemm.call import (
    Conv,
    channels_innermost,
    max_offset,
    refusal,
    same_layout,
)
from rocm_passes.kernels.triton.convolution.implicit_gemm.kernel import conv_kernel
from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import Tile, choose_tile
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.target import Target, triton_is_interpreted

__all__ = ["conv2d", "conv3d", "pack_weight"]


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv: Conv | None = None,
    front: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """[N, C, T, H, W] by [O, C, kT, kH, kW] to [N, O, T', H', W'], channels-last, in x's dtype or
    in conv.out_dtype.

    front: frames before x's. bias and residual (of the result's shape, any strides) are added in
    fp32, and then comes SiLU. x, front and weight are read where they lie if their channels are
    neighbours in memory, and copied otherwise. tile: instead of the table's.
    Raises ValueError with `refusal`'s reason.
    """
    conv = conv or Conv()
    reason = refusal(x, weight, bias, conv=conv, front=front, residual=residual, tile=tile)
    if reason is not None:
        raise ValueError(reason)
    kernel = tuple(weight.shape[2:])
    size = conv.out(x, kernel, front)
    shape = (x.shape[0], weight.shape[0], *size)
    last, dtype = torch.channels_last_3d, conv.out_dtype or x.dtype
    out = torch.empty(shape, dtype=dtype, device=x.device, memory_format=last)
    if out.numel() == 0:
        return out
    if front is not None and front.shape[2] == 0:
        front = None
    elif front is not None and x.shape[2] == 0:
        x, front = front, None
    x, front = _in_one_layout(x, front)
    pixels = size[1] * size[2]
    if tile is None:
        arch = Target.of_device(x.device).arch
        tile = choose_tile(arch, x.itemsize, x.shape[0] * size[0] * pixels, x.shape[1], shape[1])
    frame_blocks = triton.cdiv(pixels, tile.rows)
    pixel_blocks = shape[0] * size[0] * frame_blocks
    out_blocks = triton.cdiv(shape[1], tile.columns + tile.more_columns)
    before = front if front is not None else x
    added = residual if residual is not None else out
    launch(
        conv_kernel, (pixel_blocks * out_blocks,),
        x, before, pack_weight(weight), bias, residual, out,
        x.shape[2], front.shape[2] if front is not None else 0, x.shape[3], x.shape[4],
        *size, frame_blocks, pixel_blocks,
        x.stride(0), x.stride(2), before.stride(0), before.stride(2), x.stride(3), x.stride(4),
        added.stride(0), *added.stride()[2:], added.stride(1),
        C=x.shape[1], OUT=shape[1], KT=kernel[0], KH=kernel[1], KW=kernel[2],
        ST=conv.stride[0], SH=conv.stride[1], SW=conv.stride[2],
        DT=conv.dilation[0], DH=conv.dilation[1], DW=conv.dilation[2],
        PT=conv.padding[0][0], PH=conv.padding[1][0], PW=conv.padding[2][0],
        RT=conv.upsample[0], RH=conv.upsample[1], RW=conv.upsample[2], SKIPPED=conv.skipped,
        TIME_REPLICATE=conv.time == "replicate" and any(conv.padding[0]),
        SPACE_REPLICATE=conv.space == "replicate" and any(map(any, conv.padding[1:])),
        HAS_FRONT=front is not None, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, SILU=silu,
        WIDE=max_offset(conv, x, weight, residual, size, tile) > INT32_MAX,
        WIDEN=triton_is_interpreted() and x.itemsize == 2,
        BM=tile.rows, BN=tile.columns, BN2=tile.more_columns, BK=tile.depth,
        GROUP=tile.group, STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    return out


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv: Conv | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """[N, C, H, W] by [O, C, kH, kW] to [N, O, H', W'], channels-last: `conv3d` of one frame.

    conv: as of conv3d, its time parts left alone.
    """
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"x has {x.dim()} dims and the weight {weight.dim()}; 4 of each are needed"
        )
    y = conv3d(
        x.unsqueeze(2), weight.unsqueeze(2), bias, conv=conv, silu=silu, tile=tile,
        residual=None if residual is None else residual.unsqueeze(2),
    )  # fmt: skip
    return y.squeeze(2)


def pack_weight(weight: Tensor) -> Tensor:
    """[O, C, kT, kH, kW] as [O, kT * kH * kW * C], which the kernel reads.

    A channels-last weight is not copied.
    """
    return weight.permute(0, 2, 3, 4, 1).contiguous().reshape(weight.shape[0], -1)


def _in_one_layout(x: Tensor, front: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both with neighbouring channels, and with one stride along height and width each."""
    x = channels_innermost(x)
    if front is None:
        return x, None
    front = channels_innermost(front)
    if not same_layout(x, front):
        front = front.contiguous(memory_format=torch.channels_last_3d)
    if not same_layout(x, front):
        x = x.contiguous(memory_format=torch.channels_last_3d)
    return x, front
