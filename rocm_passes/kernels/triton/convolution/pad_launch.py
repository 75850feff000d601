"""Padding of image and video tensors (replicate, reflect, zeros), after nearest upsampling or
without it.

    y = F.pad(upsampled(x), padding, mode)

in one pass: x is read in whatever layout it has, and each element is written once, channels-last or
contiguous. It is a copy, exact to the bit. Convolutions whose own padding is zeros alone need it in
front of them; so do HunyuanVideo's upsamplers, which show the first frame once and every other
frame `repeats` times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import (
    INT32_MAX,
    power_of_two_divisor,
)
from rocm_passes.kernels.triton.convolution.pad_kernel import pad_kernel
from rocm_passes.kernels.triton.launch import launch

MODES = ("replicate", "reflect", "zeros")
#: Dtypes that Triton moves under their own names on every architecture; others are moved as
#: integers.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOVED = {torch.float64, torch.float32, torch.float16, torch.bfloat16, *_INTEGERS.values()}
_TILE_BYTES = 8192


@dataclass(frozen=True)
class PadTile:
    """[channels, pixels] that one program moves."""

    channels: int
    pixels: int
    num_warps: int


@dataclass(frozen=True)
class Geometry:
    """Sizes of one sample along (T, H, W), an image being one frame: of the source, of the padding
    before it, of the padded result; how often each element is repeated, and how many frames are
    then skipped.
    """

    source: tuple[int, int, int]
    before: tuple[int, int, int]
    out: tuple[int, int, int]
    repeats: tuple[int, int, int]
    skipped: int

    @property
    def pixels(self) -> int:
        return math.prod(self.out)


def choose_tile(
    channels: int, pixels: int, itemsize: int, read_last: bool, write_last: bool
) -> PadTile:
    """8 KiB a tile, contiguous in memory as far as it goes, and square where it is turned."""
    elements = _TILE_BYTES // itemsize
    if read_last != write_last:
        block = min(triton.next_power_of_2(channels), 64)
    elif write_last:
        divisor = power_of_two_divisor(channels)
        block = min(divisor if divisor >= 16 else triton.next_power_of_2(channels), 128)
    else:
        block = min(
            triton.next_power_of_2(channels), max(1, elements // triton.next_power_of_2(pixels)), 4
        )
    return PadTile(block, elements // block, num_warps=4)


def pad(
    x: Tensor,
    padding: Sequence[int],
    mode: str,
    *,
    repeats: Sequence[int] | None = None,
    skipped: int = 0,
    channels_last: bool = True,
    tile: PadTile | None = None,
) -> Tensor:
    """`x` ([N, C, H, W] or [N, C, T, H, W], any dtype of 1 to 8 bytes, any strides), upsampled and
    padded.

    padding: as F.pad's, the last dim first, none negative. mode: "replicate", "reflect" or "zeros".
    repeats: how often each element stands along ([T,] H, W) before the padding. skipped: how many
    frames at the front of the upsampled video are left out, less than repeats[0]. Returns x's
    dtype, dense, channels-last or contiguous. Raises ValueError on sizes and modes, TypeError on
    wider dtypes.
    """
    g = geometry(x, padding, mode, repeats, skipped)
    if x.dtype not in _MOVED:
        if x.itemsize not in _INTEGERS:
            raise TypeError(f"x is {x.dtype}; elements of at most 8 bytes are needed")
        options: dict[str, Any] = {
            "repeats": repeats,
            "skipped": skipped,
            "channels_last": channels_last,
            "tile": tile,
        }
        return pad(x.view(_INTEGERS[x.itemsize]), padding, mode, **options).view(x.dtype)
    out = empty_padded(x, g, channels_last, x.dtype)
    if out.numel() == 0:
        return out
    channels = x.shape[1]
    read_last = reads_channels_last(x)
    tile = tile or choose_tile(channels, g.pixels, x.itemsize, read_last, channels_last)
    pixel_blocks, channel_blocks = (
        triton.cdiv(g.pixels, tile.pixels),
        triton.cdiv(channels, tile.channels),
    )
    launch(
        pad_kernel, (x.shape[0] * pixel_blocks * channel_blocks,),
        x, out, g.pixels, pixel_blocks, channel_blocks, *g.out[1:], *g.source, *g.before, skipped,
        *strides(x),
        C=channels, CHANNELS=tile.channels, PIXELS=tile.pixels,
        REPEAT_T=g.repeats[0], REPEAT_H=g.repeats[1], REPEAT_W=g.repeats[2], MODE=mode,
        READ_LAST=read_last, WRITE_LAST=channels_last, WIDE=is_wide(x, out, tile),
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out


def geometry(
    x: Tensor, padding: Sequence[int], mode: str, repeats: Sequence[int] | None, skipped: int
) -> Geometry:
    """The call's sizes. Raises ValueError where they make no sense."""
    axes = x.dim() - 2
    if axes not in (2, 3):
        raise ValueError(f"x is {x.dim()}-d; [N, C, H, W] or [N, C, T, H, W] is needed")
    repeats = tuple(repeats) if repeats is not None else (1,) * axes
    _check(axes, padding, mode, repeats, skipped)
    before, behind = list(padding[-2::-2]), list(padding[::-2])
    inner = [size * times for size, times in zip(x.shape[2:], repeats, strict=True)]
    inner[0] -= skipped
    out = []
    for size, front, back in zip(inner, before, behind, strict=True):
        if mode == "replicate" and size < 1:
            raise ValueError(f"x has shape {tuple(x.shape)}: there is nothing to replicate")
        most = max(front, back)
        if mode == "reflect" and most >= max(size, 1):
            raise ValueError(f"padding {list(padding)} reflects {most} of {size} elements")
        out.append(max(size, 0) + front + back)
    return Geometry(
        _three(x.shape[2:], 1), _three(before, 0), _three(out, 1), _three(repeats, 1), skipped
    )


def _check(
    axes: int, padding: Sequence[int], mode: str, repeats: tuple[int, ...], skipped: int
) -> None:
    if len(repeats) != axes or min(repeats) < 1:
        raise ValueError(f"repeats are {repeats}; {axes} of at least 1 are needed")
    if not 0 <= skipped < repeats[0] or (skipped and axes == 2):
        raise ValueError(f"skipped={skipped} and the frames are repeated {repeats[0]} times")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; there are {', '.join(MODES)}")
    if len(padding) != 2 * axes:
        raise ValueError(f"padding is {list(padding)}; {2 * axes} sizes are needed")
    if min(padding) < 0:
        raise ValueError(f"padding is {list(padding)}; negative padding crops")


def _three(sizes: Sequence[int], of_an_image: int) -> tuple[int, int, int]:
    """Along (T, H, W): an image is one frame."""
    t, h, w = sizes if len(sizes) == 3 else (of_an_image, *sizes)
    return t, h, w


def empty_padded(x: Tensor, g: Geometry, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Memory for the result: [N, C, *out], channels-last or contiguous."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    shape = (*x.shape[:2], *g.out[5 - x.dim() :])
    layout = last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def reads_channels_last(x: Tensor) -> bool:
    """Are the channels the dim to read along? Those that are one apart, unless the columns are as
    well.
    """
    return x.stride(1) == 1 and x.shape[1] > 1


def strides(x: Tensor) -> tuple[int, int, int, int, int]:
    """x's strides along (N, C, T, H, W), an image being one frame."""
    return (x.stride(0), x.stride(1), *_three(x.stride()[2:], 0))


def is_wide(x: Tensor, out: Tensor, tile: PadTile) -> bool:
    """Do offsets inside a sample pass 31 bits, those of masked lanes included?"""
    _, *apart = strides(x)
    reach = sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
    beyond = tile.channels * max(apart[0], out.stride(1), 1) + tile.pixels * max(out.stride(-1), 1)
    return max(reach, out.numel() // out.shape[0]) + beyond > INT32_MAX
