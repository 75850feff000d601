"""Copying frames from one place and memory layout to another, turned where the layouts differ.

A causal convolution reads the last frames of the chunk before in front of its own. They come as the
caller keeps them, mostly contiguous, and go into a channels-last video: a transposition, in tiles.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import (
    INT32_MAX,
    power_of_two_divisor,
)
from rocm_passes.kernels.triton.dense import pixel_distance, sample_extent
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.ops.frames import TIME, empty_joined, has_front

_TILE_BYTES = 16384


@triton.jit
def copy_frames_kernel(
    x_ptr, out_ptr, frames, pixels, pixel_blocks, channel_blocks,
    sample_stride, frame_stride, pixel_stride, channel_stride,
    out_sample_stride, out_frame_stride, out_pixel_stride, out_channel_stride,
    C: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, READ_LAST: tl.constexpr,
    WRITE_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of a frame, read along x's contiguous dim (READ_LAST: its channels) and written
    along the result's.
    """
    pid = tl.program_id(0)
    channel_block = pid % channel_blocks
    pixel_block = (pid // channel_blocks) % pixel_blocks
    frame = pid // channel_blocks // pixel_blocks
    sample = (frame // frames).to(tl.int64)
    frame = (frame % frames).to(tl.int64)
    channel = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    pixel = pixel_block * PIXELS + tl.arange(0, PIXELS)
    channel_mask = channel < C
    pixel_mask = pixel < pixels
    if WIDE:
        channel = channel.to(tl.int64)
        pixel = pixel.to(tl.int64)
    x_ptr += sample * sample_stride + frame * frame_stride
    out_ptr += sample * out_sample_stride + frame * out_frame_stride
    if READ_LAST:
        at = pixel[:, None] * pixel_stride + channel[None, :] * channel_stride
        tile = tl.load(x_ptr + at, mask=pixel_mask[:, None] & channel_mask[None, :], other=0.0)
    else:
        at = channel[:, None] * channel_stride + pixel[None, :] * pixel_stride
        tile = tl.load(x_ptr + at, mask=channel_mask[:, None] & pixel_mask[None, :], other=0.0)
    if READ_LAST != WRITE_LAST:
        tile = tl.trans(tile)
    if WRITE_LAST:
        at = pixel[:, None] * out_pixel_stride + channel[None, :] * out_channel_stride
        tl.store(out_ptr + at, tile, mask=pixel_mask[:, None] & channel_mask[None, :])
    else:
        at = channel[:, None] * out_channel_stride + pixel[None, :] * out_pixel_stride
        tl.store(out_ptr + at, tile, mask=channel_mask[:, None] & pixel_mask[None, :])


@dataclass(frozen=True)
class FrameTile:
    """[channels, pixels] that one program moves."""

    channels: int
    pixels: int
    num_warps: int = 4


def choose_tile(channels: int, itemsize: int, channels_innermost: bool) -> FrameTile:
    """16 KiB, square rather than long: 3.5 to 3.9 of an H200's 4.0 TB/s for 96 to 256 channels in
    bf16, turned.

    channels_innermost: on either side.
    """
    elements = _TILE_BYTES // itemsize
    if not channels_innermost:
        return FrameTile(1, min(elements, 4096))
    divisor = power_of_two_divisor(channels)
    block = min(divisor if divisor >= 16 else triton.next_power_of_2(channels), 64)
    return FrameTile(block, min(elements // block, 256))


def copy_frames(x: Tensor, out: Tensor, tile: FrameTile | None = None) -> None:
    """Copy x into `out`, both [N, C, T, H, W] of one shape and dtype (float32, float16 or
    bfloat16).

    out: of any strides in which a frame's pixels lie at equal distances, as in a contiguous or
    channels-last video or a part of it. x: any strides (copied first where its pixels do not).
    Raises ValueError on other dims, on unlike shapes and on other strides of `out`, TypeError on
    unlike dtypes.
    """
    if x.dim() != 5 or x.shape != out.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, out {tuple(out.shape)}; one [N, C, T, H, W] is needed"
        )
    if x.dtype is not out.dtype:
        raise TypeError(f"x is {x.dtype} and out {out.dtype}; one dtype is needed")
    if _pixel_stride(out) is None:
        raise ValueError(
            f"out has strides {out.stride()}; a frame's pixels must lie at equal distances"
        )
    if x.numel() == 0:
        return
    if _pixel_stride(x) is None:
        x = x.contiguous()
    samples, channels, frames, height, width = x.shape
    pixels = height * width
    read_last, write_last = (t.stride(1) == 1 and channels > 1 for t in (x, out))
    tile = tile or choose_tile(channels, x.itemsize, read_last or write_last)
    pixel_blocks, channel_blocks = (
        triton.cdiv(pixels, tile.pixels),
        triton.cdiv(channels, tile.channels),
    )
    beyond = tile.pixels * channels + tile.channels * pixels * frames
    launch(
        copy_frames_kernel, (samples * frames * pixel_blocks * channel_blocks,),
        x, out, frames, pixels, pixel_blocks, channel_blocks, *_strides(x), *_strides(out),
        C=channels, CHANNELS=tile.channels, PIXELS=tile.pixels, READ_LAST=read_last,
        WRITE_LAST=write_last,
        WIDE=max(sample_extent(x), sample_extent(out)) + beyond > INT32_MAX,
        num_warps=tile.num_warps,
    )  # fmt: skip


def joined(
    front: Tensor | None,
    repeat_first: int,
    x: Tensor,
    dtype: torch.dtype,
    compute: Callable[[Tensor | None], Tensor],
) -> Tensor:
    """A kernel's result behind the frames in front of it, as `ops.frames.joined_by_copies` has it.

    compute: writes into the tensor of x's shape that it is given, and returns it. It is given None,
    and allocates, where nothing stands in front.
    """
    if not has_front(front, repeat_first):
        return compute(None)
    whole = empty_joined(front, repeat_first, x, dtype)
    count = whole.shape[TIME] - x.shape[TIME]
    first, rest = whole.narrow(TIME, 0, count), whole.narrow(TIME, count, x.shape[TIME])
    compute(rest)
    copy_frames(rest.narrow(TIME, 0, 1).expand_as(first) if front is None else front, first)
    return whole


def _pixel_stride(video: Tensor) -> int | None:
    """The distance of neighbouring pixels of a frame, or None where there is no one distance."""
    return pixel_distance(video.shape[3:], video.stride()[3:])


def _strides(video: Tensor) -> tuple[int, int, int, int]:
    """Along samples, frames, pixels and channels."""
    pixel = _pixel_stride(video)
    assert pixel is not None
    return video.stride(0), video.stride(2), pixel, video.stride(1)
