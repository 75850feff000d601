"""RMSNorm over the channels (dim 1) of image and video tensors, with SiLU, as Wan's and LTX-2's
VAEs have it.

    "l2":   n = x / max(||x||_2, eps)         F.normalize(x, dim=1): Wan, Qwen-Image and Hunyuan 1.5
    "mean": n = x / sqrt(mean(x^2) + eps)     LTX-2's PerChannelRMSNorm
    y = silu?(n * scale * gamma + bias)

A dense tensor, whatever the order of its dims, is [outer, C, inner] in memory: NCHW has inner =
H*W, channels-last inner = 1. One kernel serves both, and reduces the strided or the contiguous axis
of a tile.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"
# ruff: noqa: RUF005 -- Triton's tuples grow by `+`

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import (
    INT32_MAX,
    TRITON_TYPE,
    check_dtype,
    inverse_length,
    inverse_rms,
    power_of_two_divisor,
    silu,
)
from rocm_passes.kernels.triton.dense import (
    DenseView,
    dense_view,
    pixel_strides,
    sample_extent,
    takes_pixels_of,
)
from rocm_passes.kernels.triton.launch import launch

ChannelNormForm = Literal["l2", "mean"]

MAX_CHANNELS = 65536


@triton.jit
def channel_norm_kernel(
    x_ptr, x_bias_ptr, gamma_ptr, bias_ptr, out_ptr,
    pixels, blocks_per_outer, outer_stride, pixel_stride, channel_stride,
    out_outer_stride, out_pixel_stride, out_channel_stride,
    C: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, PIXELS: tl.constexpr,
    RESIDENT: tl.constexpr,
    FORM: tl.constexpr, EPS: tl.constexpr, SCALE: tl.constexpr, HAS_GAMMA: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_X_BIAS: tl.constexpr, ROUND_NORM: tl.constexpr, SILU: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """PIXELS pixels, all C channels in CHUNKS tiles [CHUNK, PIXELS]; read twice unless RESIDENT."""
    EVEN: tl.constexpr = C % CHUNK == 0
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    pid = tl.program_id(0)
    pixel = (pid % blocks_per_outer) * PIXELS + tl.arange(0, PIXELS)
    outer = (pid // blocks_per_outer).to(tl.int64)
    x_ptr += outer * outer_stride
    out_ptr += outer * out_outer_stride
    if WIDE:
        pixel = pixel.to(tl.int64)
    offsets = pixel * pixel_stride
    out_offsets = pixel * out_pixel_stride
    pixel_mask = (pixel < pixels)[None, :]

    tiles = ()
    square = tl.zeros([CHUNK, PIXELS], tl.float32)
    if RESIDENT:
        for k in tl.static_range(CHUNKS):
            channel = _channels(k, CHUNK, WIDE)
            inside = pixel_mask if EVEN else pixel_mask & (channel < C)[:, None]
            ptrs = x_ptr + offsets[None, :] + channel[:, None] * channel_stride
            tiles = tiles + (tl.load(ptrs, mask=inside, other=0.0),)
        for k in tl.static_range(CHUNKS):
            v = _biased(tiles[k], x_bias_ptr, _channels(k, CHUNK, WIDE), C, HAS_X_BIAS)
            square += v * v
    else:
        for k in range(CHUNKS):
            channel = _channels(k, CHUNK, WIDE)
            inside = pixel_mask if EVEN else pixel_mask & (channel < C)[:, None]
            ptrs = x_ptr + offsets[None, :] + channel[:, None] * channel_stride
            v = _biased(tl.load(ptrs, mask=inside, other=0.0), x_bias_ptr, channel, C, HAS_X_BIAS)
            square += v * v
    total = tl.sum(square, 0)
    if FORM == "mean":
        factor = inverse_rms(total, C, EPS, dtype, "add")[None, :]
    else:
        factor = inverse_length(total, EPS, dtype)[None, :]

    if RESIDENT:
        for k in tl.static_range(CHUNKS):
            channel = _channels(k, CHUNK, WIDE)
            y = _finish(tiles[k], x_bias_ptr, factor, gamma_ptr, bias_ptr, channel, dtype, C, EVEN,
            SCALE, HAS_GAMMA,
                        HAS_BIAS, HAS_X_BIAS, ROUND_NORM, SILU)  # fmt: skip
            inside = pixel_mask if EVEN else pixel_mask & (channel < C)[:, None]
            ptrs = out_ptr + out_offsets[None, :] + channel[:, None] * out_channel_stride
            tl.store(ptrs, y, mask=inside)
    else:
        for k in range(CHUNKS):
            channel = _channels(k, CHUNK, WIDE)
            inside = pixel_mask if EVEN else pixel_mask & (channel < C)[:, None]
            ptrs = x_ptr + offsets[None, :] + channel[:, None] * channel_stride
            x = tl.load(ptrs, mask=inside, other=0.0)
            y = _finish(x, x_bias_ptr, factor, gamma_ptr, bias_ptr, channel, dtype, C, EVEN, SCALE,
            HAS_GAMMA,
                        HAS_BIAS, HAS_X_BIAS, ROUND_NORM, SILU)  # fmt: skip
            ptrs = out_ptr + out_offsets[None, :] + channel[:, None] * out_channel_stride
            tl.store(ptrs, y, mask=inside)


@triton.jit
def _channels(k, CHUNK: tl.constexpr, WIDE: tl.constexpr):
    """Channel numbers of tile k, 64-bit where an offset within `outer` can pass 2^31."""
    channel = k * CHUNK + tl.arange(0, CHUNK)
    if WIDE:
        channel = channel.to(tl.int64)
    return channel


@triton.jit
def _biased(x, x_bias_ptr, channel, C: tl.constexpr, HAS_X_BIAS: tl.constexpr):
    """x + x_bias of a [CHUNK, PIXELS] tile in fp32; outside the channels both are zero."""
    v = x.to(tl.float32)
    if HAS_X_BIAS:
        v += tl.load(x_bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[:, None]
    return v


@triton.jit
def _finish(
    x, x_bias_ptr, factor, gamma_ptr, bias_ptr, channel, dtype: tl.constexpr, C: tl.constexpr,
    EVEN: tl.constexpr,
    SCALE: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_X_BIAS: tl.constexpr,
    ROUND_NORM: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """silu?(x * factor * scale * gamma + bias) of a [CHUNK, PIXELS] tile, in the output's dtype."""
    n = _biased(x, x_bias_ptr, channel, C, HAS_X_BIAS) * factor
    if ROUND_NORM:
        n = n.to(x.dtype).to(tl.float32)
    weight = tl.full(channel.shape, SCALE, tl.float32)
    if HAS_GAMMA:
        weight *= tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    n *= weight[:, None]
    if HAS_BIAS:
        n += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[:, None]
    if SILU:
        n = silu(n, dtype == tl.float32)
    return n.to(dtype)


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
    x: Tensor,
    gamma: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    form: ChannelNormForm = "l2",
    eps: float = 1e-12,
    scale: float = 1.0,
    silu: bool = False,
    round_before_weight: bool = False,
    out_dtype: torch.dtype | None = None,
    x_bias: Tensor | None = None,
    out: Tensor | None = None,
    tile: ChannelTile | None = None,
) -> Tensor:
    """Normalise over dim 1 of `x` ([N, C, *spatial], float32/float16/bfloat16), computed in fp32,
    rounded once.

    gamma, bias: C elements in any shape along dim 1 ([C], [C,1,1], [1,C,1,1,1]) or one, any float
    dtype.
    scale: sqrt(C) in Wan's spelling.
    x_bias: added to x before the norm, unrounded; the bias of the convolution that made x, like
    gamma.
    round_before_weight: n is rounded to x's dtype before scale and gamma (F.normalize in fp32, then
    cast).
    out: written instead of a new tensor; of x's shape, its pixels at equal distances. Returns
    `out`, or [N, C, *spatial] in x's strides (in the strides of `empty_like` where x is not dense).
    Raises TypeError on dtypes, ValueError on shapes, on an unknown form and on the strides of
    `out`.
    """
    check_dtype("x", x)
    if x.dim() < 2:
        raise ValueError(f"x is {x.dim()}-d; [N, C, *spatial] is needed")
    if form not in ("l2", "mean"):
        raise ValueError(f"form is {form!r}; 'l2' or 'mean' is needed")
    channels = x.shape[1]
    if channels > MAX_CHANNELS:
        raise ValueError(f"{channels} channels; at most {MAX_CHANNELS} are taken")
    gamma, bias = _per_channel("gamma", gamma, channels), _per_channel("bias", bias, channels)
    x_bias = _per_channel("x_bias", x_bias, channels)
    if out is not None:
        x = takes_pixels_of(x, out)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=out_dtype or x.dtype) if out is None else out
    view = dense_view(x)
    places = _places(view) if out is None else _places_in(view, out)
    if out is None:
        out = torch.empty_like(view.tensor, dtype=out_dtype or x.dtype)
    check_dtype("out", out)
    _launch(
        view, x_bias, gamma, bias, out, places, form, eps, scale, silu, round_before_weight, tile
    )
    return out


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
    view: DenseView,
    x_bias: Tensor | None,
    gamma: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    places: _Places,
    form: ChannelNormForm,
    eps: float,
    scale: float,
    silu: bool,
    round_before_weight: bool,
    tile: ChannelTile | None,
) -> None:
    tile = tile or choose_tile(view.channels, channels_last=view.inner == 1)
    blocks = triton.cdiv(places.pixels, tile.pixels)
    extent = max(view.tensor.numel(), sample_extent(out))
    launch(
        channel_norm_kernel,
        (places.outer * blocks,),
        view.tensor,
        view.tensor if x_bias is None else x_bias,
        view.tensor if gamma is None else gamma,
        view.tensor if bias is None else bias,
        out,
        places.pixels,
        blocks,
        *places.of_x,
        *places.of_out,
        C=view.channels,
        CHUNK=tile.chunk,
        CHUNKS=triton.cdiv(view.channels, tile.chunk),
        PIXELS=tile.pixels,
        RESIDENT=tile.resident,
        FORM=form,
        EPS=float(eps),
        SCALE=float(scale),
        HAS_GAMMA=gamma is not None,
        HAS_BIAS=bias is not None,
        HAS_X_BIAS=x_bias is not None,
        ROUND_NORM=round_before_weight,
        SILU=silu,
        WIDE=extent + tile.pixels * view.channels > INT32_MAX,
        num_warps=tile.num_warps,
    )


def _per_channel(name: str, t: Tensor | None, channels: int) -> Tensor | None:
    """One contiguous value a channel."""
    if t is None:
        return None
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; a floating dtype is needed")
    if t.numel() not in (1, channels):
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}; {channels} elements, one a channel, are needed"
        )
    t = t if t.dtype in TRITON_TYPE else t.float()
    return t.reshape(-1).expand(channels).contiguous()
