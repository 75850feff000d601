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

import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import inverse_length, inverse_rms, silu


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
