"""Launching the norm over the channels: checks, tiles, and where x and the result lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import INT32_MAX, check_dtype, power_of_two_divisor
from rocm_passes.kernels.triton.dense import (
    DenseView,
    dense_view,
    per_channel,
    pixel_strides,
    sample_extent,
    takes_pixels_of,
)
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.norms.channel_norm_kernel import channel_norm_kernel
from rocm_passes.ops.channel_norm import ChannelNorm

MAX_CHANNELS = 65536


@dataclass(frozen=True)
class ChannelTile:
    """`pixels` pixels a program, channels in chunks of `chunk`."""

    chunk: int
    pixels: int
    resident: bool
    num_warps: int


def choose_tile(channels: int, channels_last: bool) -> ChannelTile:
    """Chunks that divide C leave no lanes idle (96 = 3 * 32). Some 48 elements a lane is best on an
    H200.
    """
    padded = triton.next_power_of_2(channels)
    divisor = power_of_two_divisor(channels)
    chunk = divisor if divisor >= 16 else min(padded, 64)
    if channels_last:
        pixels = max(1, 8192 // padded)
        return ChannelTile(min(chunk, 256), pixels, resident=channels <= 8192, num_warps=4)
    pixels = 64 if channels <= 128 else 32
    num_warps = 4 if channels <= 256 else 8
    return ChannelTile(
        min(chunk, 128), pixels, resident=channels * pixels <= 16384, num_warps=num_warps
    )


def channel_norm(
    call: ChannelNorm, out: Tensor | None = None, tile: ChannelTile | None = None
) -> Tensor:
    """The call's norm in fp32, rounded once; the frames in front of it are left to the caller.

    gamma, bias, x_bias: of C elements in any shape, or of one.
    out: written instead of a new tensor; of x's shape, its pixels at equal distances. Returns
    `out`, or [N, C, *spatial] in x's strides (in the strides of `empty_like` where x is not dense).
    Raises TypeError on dtypes, ValueError on shapes, on an unknown form and on the strides of
    `out`.
    """
    _check(call)
    x = call.x if out is None else takes_pixels_of(call.x, out)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=call.out_dtype) if out is None else out
    view = dense_view(x)
    places = _places(view) if out is None else _places_in(view, out)
    if out is None:
        out = torch.empty_like(view.tensor, dtype=call.out_dtype)
    check_dtype("out", out)
    tile = tile or choose_tile(view.channels, channels_last=view.inner == 1)
    _launch(call, view, out, places, tile)
    return out


def _check(call: ChannelNorm) -> None:
    check_dtype("x", call.x)
    if call.x.dim() < 2:
        raise ValueError(f"x is {call.x.dim()}-d; [N, C, *spatial] is needed")
    if call.form not in ("l2", "mean"):
        raise ValueError(f"form is {call.form!r}; 'l2' or 'mean' is needed")
    if call.x.shape[1] > MAX_CHANNELS:
        raise ValueError(f"{call.x.shape[1]} channels; at most {MAX_CHANNELS} are taken")


@dataclass(frozen=True)
class _Places:
    """[outer, pixels] of x, and the strides of x and of the result along (outer, pixels,
    channels).
    """

    outer: int
    pixels: int
    of_x: tuple[int, int, int]
    of_out: tuple[int, int, int]


def _places(view: DenseView) -> _Places:
    """The result lies as x does."""
    if view.inner == 1:
        # With the channels innermost, all pixels are one run of stride C.
        strides = (0, view.channels, 1)
        return _Places(1, view.outer, strides, strides)
    strides = (view.channels * view.inner, 1, view.inner)
    return _Places(view.outer, view.inner, strides, strides)


def _places_in(view: DenseView, out: Tensor) -> _Places:
    """The result lies elsewhere: sample by sample, both in the order of their dims."""
    x = view.tensor
    return _Places(
        x.shape[0], x.numel() // (x.shape[0] * x.shape[1]), pixel_strides(x), pixel_strides(out)
    )


def _launch(
    call: ChannelNorm, view: DenseView, out: Tensor, places: _Places, tile: ChannelTile
) -> None:
    x, channels = view.tensor, view.channels
    x_bias, gamma, bias = (
        per_channel(name, t, channels, one_for_all=True)
        for name, t in (("x_bias", call.x_bias), ("gamma", call.gamma), ("bias", call.bias))
    )
    blocks = triton.cdiv(places.pixels, tile.pixels)
    extent = max(x.numel(), sample_extent(out))
    launch(
        channel_norm_kernel,
        (places.outer * blocks,),
        x,
        x_bias,
        gamma,
        bias,
        out,
        places.pixels,
        blocks,
        *places.of_x,
        *places.of_out,
        C=channels,
        CHUNK=tile.chunk,
        CHUNKS=triton.cdiv(channels, tile.chunk),
        PIXELS=tile.pixels,
        RESIDENT=tile.resident,
        FORM=call.form,
        EPS=float(call.eps),
        SCALE=float(call.scale),
        HAS_GAMMA=gamma is not None,
        HAS_BIAS=bias is not None,
        HAS_X_BIAS=x_bias is not None,
        ROUND_NORM=call.round_to is not None,
        SILU=call.silu,
        WIDE=extent + tile.pixels * channels > INT32_MAX,
        num_warps=tile.num_warps,
    )
