"""GroupNorm, SiLU or not, written straight into a padded tensor: what stands between HunyuanVideo's
convolutions.

    y = F.pad(silu?(group_norm(x) * weight + bias), padding, mode)

The statistics are `group_norm`'s. What applies them goes over the padded tensor and normalises each
element from where it comes, so that the padding is no pass over memory of its own.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import check_dtype, silu
from rocm_passes.kernels.triton.convolution.pad_kernel import source_offset
from rocm_passes.kernels.triton.convolution.pad_launch import (
    PadTile,
    choose_tile,
    empty_padded,
    geometry,
    is_wide,
    reads_channels_last,
    strides,
)
from rocm_passes.kernels.triton.dense import dense_view
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.norms.group_norm_launch import checked, group_statistics, is_native
from rocm_passes.kernels.triton.norms.group_norm_launch import choose_tile as choose_statistics_tile
from rocm_passes.ops.group_norm_pad import GroupNormPad


@triton.jit
def group_norm_pad_kernel(
    x_ptr, x_bias_ptr, shift_ptr, drift_ptr, rstd_ptr, weight_ptr, bias_ptr, out_ptr,
    pixels, pixel_blocks, channel_blocks, out_height, out_width, frames, height, width, front, top,
    left,
    sample_stride, channel_stride, frame_stride, row_stride, column_stride,
    C: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    MODE: tl.constexpr,
    HAS_X_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
    READ_LAST: tl.constexpr, WRITE_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of the padded tensor, last tile first: the statistics ended there. See `pad_kernel`
    for its order.

    Tiles are [PIXELS, CHANNELS] where the source's channels are contiguous, else [CHANNELS,
    PIXELS].
    """
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    CHANNEL_DIM: tl.constexpr = 0 if READ_LAST else 1
    PIXEL_DIM: tl.constexpr = 1 if READ_LAST else 0
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    if WRITE_LAST:
        channel_block = pid % channel_blocks
        pixel_block = (pid // channel_blocks) % pixel_blocks
    else:
        pixel_block = pid % pixel_blocks
        channel_block = (pid // pixel_blocks) % channel_blocks
    sample = pid // pixel_blocks // channel_blocks
    pixel = pixel_block * PIXELS + tl.arange(0, PIXELS)
    channel = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    pixel_mask = pixel < pixels
    channel_mask = channel < C
    if WIDE:
        pixel = pixel.to(tl.int64)
        channel = channel.to(tl.int64)
    at, inside = source_offset(
        pixel, out_height, out_width, frames, height, width, front, top, left, 0,
        frame_stride, row_stride, column_stride, 1, 1, 1, MODE,
    )  # fmt: skip

    mask = tl.expand_dims(pixel_mask, PIXEL_DIM) & tl.expand_dims(channel_mask, CHANNEL_DIM)
    offsets = tl.expand_dims(at, PIXEL_DIM) + tl.expand_dims(channel, CHANNEL_DIM) * channel_stride
    x = tl.load(x_ptr + sample.to(tl.int64) * sample_stride + offsets, mask=mask, other=0.0).to(
        tl.float32
    )
    if HAS_X_BIAS:
        x_bias = tl.load(x_bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
        x += tl.expand_dims(x_bias, CHANNEL_DIM)
    group = sample * GROUPS + channel // (C // GROUPS)
    shift = tl.load(shift_ptr + group, mask=channel_mask, other=0.0)
    drift = tl.load(drift_ptr + group, mask=channel_mask, other=0.0)
    rstd = tl.load(rstd_ptr + group, mask=channel_mask, other=0.0)
    y = x - tl.expand_dims(shift, CHANNEL_DIM) - tl.expand_dims(drift, CHANNEL_DIM)
    y *= tl.expand_dims(rstd, CHANNEL_DIM)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
        y *= tl.expand_dims(weight, CHANNEL_DIM)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
        y += tl.expand_dims(bias, CHANNEL_DIM)
    if SILU:
        y = silu(y, dtype == tl.float32)
    if MODE == "zeros":
        y = tl.where(tl.expand_dims(inside, PIXEL_DIM), y, 0.0)
    tile = y.to(dtype)

    if READ_LAST != WRITE_LAST:
        tile = tl.trans(tile)
    base = out_ptr + sample.to(tl.int64) * pixels * C
    if WRITE_LAST:
        tl.store(
            base + (pixel[:, None] * C + channel[None, :]),
            tile,
            mask=pixel_mask[:, None] & channel_mask[None, :],
        )
    else:
        tl.store(
            base + (channel[:, None] * pixels + pixel[None, :]),
            tile,
            mask=pixel_mask[None, :] & channel_mask[:, None],
        )


def group_norm_pad(call: GroupNormPad, tile: PadTile | None = None) -> Tensor:
    """The call's norm in fp32, rounded once, padded; zeros stand beside what is normalised.

    Raises TypeError on dtypes, ValueError on sizes and modes.
    """
    check_dtype("x", call.x)
    g = geometry(call.x, call.padding, call.mode, None, 0)
    norm = checked(call.norm())
    out = empty_padded(call.x, g, call.channels_last, call.out_dtype)
    check_dtype("out", out)
    if call.x.numel() == 0:
        return out.zero_()
    view = dense_view(call.x)
    if not is_native(view):
        view = dense_view(call.x.contiguous())
    x, channels = view.tensor, view.channels
    samples = x.shape[0]
    pixels = x.numel() // (samples * channels)
    statistics = group_statistics(
        norm, view, choose_statistics_tile(samples, channels, pixels, view.inner == 1)
    )
    read_last = reads_channels_last(x)
    itemsize = max(x.itemsize, out.itemsize)
    tile = tile or choose_tile(channels, g.pixels, itemsize, read_last, call.channels_last)
    pixel_blocks = triton.cdiv(g.pixels, tile.pixels)
    channel_blocks = triton.cdiv(channels, tile.channels)
    launch(
        group_norm_pad_kernel, (samples * pixel_blocks * channel_blocks,),
        x, norm.x_bias, *statistics.unbind(), norm.weight, norm.bias, out,
        g.pixels, pixel_blocks, channel_blocks, *g.out[1:], *g.source, *g.before, *strides(x),
        C=channels, GROUPS=call.groups, CHANNELS=tile.channels, PIXELS=tile.pixels, MODE=call.mode,
        HAS_X_BIAS=norm.x_bias is not None, HAS_WEIGHT=norm.weight is not None,
        HAS_BIAS=norm.bias is not None, SILU=call.silu,
        READ_LAST=read_last, WRITE_LAST=call.channels_last, WIDE=is_wide(x, out, tile),
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out
