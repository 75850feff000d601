"""Device code of GroupNorm over [N, C, S] tensors, S pixels; `group_norm.py` plans the launches.

Three launches: partial statistics per channel and stretch of pixels, their combination per group,
and the normalisation. Tiles are [CHANNELS, PIXELS]; the strides say which of the two is contiguous
in memory.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import exact_rsqrt, silu


@triton.jit
def group_norm_partials_kernel(
    x_ptr, x_bias_ptr, shift_ptr, drift_ptr, spread_ptr, pixels, pixels_per_split, splits,
    channel_blocks,
    sample_stride, pixel_stride, channel_stride,
    C: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, HAS_X_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Mean (as shift + drift) and squared differences from it, per channel of one split: [N,
    splits, C] each.

    The sums are of x - shift, with the first tile's mean per channel for a shift: x's own mean
    cannot cancel the variance away, and where the first tile is no measure of the rest, that
    difference is itself the variance.
    """
    pid = tl.program_id(0)
    block = pid % channel_blocks
    split = (pid // channel_blocks) % splits
    sample = pid // channel_blocks // splits
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = (channel < C)[:, None]
    start = split * pixels_per_split
    end = tl.minimum(start + pixels_per_split, pixels)
    base = x_ptr + sample.to(tl.int64) * sample_stride
    lane = tl.arange(0, PIXELS)
    if WIDE:
        channel = channel.to(tl.int64)
        lane = lane.to(tl.int64)
    row = channel[:, None] * channel_stride

    head = start + lane
    head_mask = (head < end)[None, :]
    x = tl.load(
        base + (row + head[None, :] * pixel_stride), mask=channel_mask & head_mask, other=0.0
    )
    head_count = tl.minimum(end - start, PIXELS).to(tl.float32)
    shift = (tl.sum(x.to(tl.float32), 1) / head_count)[:, None]
    d = tl.where(head_mask, x.to(tl.float32) - shift, 0.0)
    total = d
    square = d * d
    for tile in range(start + PIXELS, end, PIXELS):
        pixel = tile + lane
        inside = (pixel < end)[None, :]
        x = tl.load(
            base + (row + pixel[None, :] * pixel_stride), mask=channel_mask & inside, other=0.0
        )
        d = tl.where(inside, x.to(tl.float32) - shift, 0.0)
        total += d
        square += d * d
    count = (end - start).to(tl.float32)
    drift = tl.sum(total, 1) / count
    spread = tl.sum(square, 1) - drift * drift * count
    at = (sample * splits + split).to(tl.int64) * C + channel
    mean = tl.sum(shift, 1)
    if HAS_X_BIAS:
        mean += tl.load(x_bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    tl.store(shift_ptr + at, mean, mask=channel < C)
    tl.store(drift_ptr + at, drift, mask=channel < C)
    # Rounding can leave a constant split slightly below zero; NaN must pass.
    tl.store(
        spread_ptr + at,
        tl.maximum(spread, 0.0, propagate_nan=tl.PropagateNan.ALL),
        mask=channel < C,
    )


@triton.jit
def group_norm_combine_kernel(
    partial_shift_ptr, partial_drift_ptr, partial_spread_ptr, shift_ptr, drift_ptr, rstd_ptr,
    pixels,
    pixels_per_split, splits, C: tl.constexpr, GROUPS: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean (as shift + drift) and 1/sqrt(var + eps) of one group, from its partials: [N, GROUPS]
    each.

    Kept apart, a small drift keeps its digits beside a large shift.
    """
    WIDTH: tl.constexpr = C // GROUPS
    pid = tl.program_id(0)
    first = (pid // GROUPS).to(tl.int64) * splits * C + (pid % GROUPS) * WIDTH
    partials = splits * WIDTH
    # A launch makes a constexpr of an integer that is 1, which has no `.to`.
    size = tl.full([], WIDTH, tl.float32) * pixels
    weighted = tl.zeros([BLOCK], tl.float32)
    anchor = tl.load(partial_shift_ptr + first)
    for start in range(0, partials, BLOCK):
        k = start + tl.arange(0, BLOCK)
        split = k // WIDTH
        count = tl.minimum(pixels - split * pixels_per_split, pixels_per_split).to(tl.float32)
        at = first + split * C + k % WIDTH
        mean = tl.load(partial_shift_ptr + at, mask=k < partials, other=0.0) - anchor
        mean += tl.load(partial_drift_ptr + at, mask=k < partials, other=0.0)
        weighted += tl.where(k < partials, mean * count, 0.0)
    centre = tl.sum(weighted, 0) / size
    spread = tl.zeros([BLOCK], tl.float32)
    for start in range(0, partials, BLOCK):
        k = start + tl.arange(0, BLOCK)
        split = k // WIDTH
        count = tl.minimum(pixels - split * pixels_per_split, pixels_per_split).to(tl.float32)
        at = first + split * C + k % WIDTH
        mean = tl.load(partial_shift_ptr + at, mask=k < partials, other=0.0) - anchor
        mean += tl.load(partial_drift_ptr + at, mask=k < partials, other=0.0)
        within = tl.load(partial_spread_ptr + at, mask=k < partials, other=0.0)
        d = mean - centre
        spread += tl.where(k < partials, within + d * d * count, 0.0)
    variance = tl.sum(spread, 0) / size
    tl.store(shift_ptr + pid, anchor)
    tl.store(drift_ptr + pid, centre)
    tl.store(rstd_ptr + pid, exact_rsqrt(variance + tl.full([], EPS, tl.float32)))


@triton.jit
def group_norm_apply_kernel(
    x_ptr, x_bias_ptr, shift_ptr, drift_ptr, rstd_ptr, weight_ptr, bias_ptr, multiplier_ptr,
    addend_ptr,
    pixel_index_ptr, out_ptr, pixels, pixel_blocks, channel_blocks, sample_stride, pixel_stride,
    channel_stride,
    given_sample_stride, given_pixel_stride, given_channel_stride,
    out_sample_stride, out_pixel_stride, out_channel_stride,
    C: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    HAS_X_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr,
    HAS_ADDEND: tl.constexpr, HAS_PIXEL_INDEX: tl.constexpr, SILU: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """silu?(((x - mean) * rstd * weight + bias) * multiplier + addend) of one tile, last tile
    first.

    Multiplier and addend are x's size and lie as x does, or have other pixels, in the strides
    `given_*`, and pixel_index says which of them each of x's pixels takes.
    The statistics ended on the last tiles: they are the ones still in cache.
    """
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    if channel_stride == 1:
        channel_block = pid % channel_blocks
        pixel_block = (pid // channel_blocks) % pixel_blocks
    else:
        pixel_block = pid % pixel_blocks
        channel_block = (pid // pixel_blocks) % channel_blocks
    sample = pid // pixel_blocks // channel_blocks
    channel = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < C
    pixel = pixel_block * PIXELS + tl.arange(0, PIXELS)
    inside = channel_mask[:, None] & (pixel < pixels)[None, :]
    if WIDE:
        channel = channel.to(tl.int64)
        pixel = pixel.to(tl.int64)
    base = sample.to(tl.int64) * sample_stride
    at = channel[:, None] * channel_stride + pixel[None, :] * pixel_stride

    x = tl.load(x_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_X_BIAS:
        x += tl.load(x_bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)[:, None]
    group = sample * GROUPS + channel // (C // GROUPS)
    shift = tl.load(shift_ptr + group, mask=channel_mask, other=0.0)
    drift = tl.load(drift_ptr + group, mask=channel_mask, other=0.0)
    rstd = tl.load(rstd_ptr + group, mask=channel_mask, other=0.0)
    y = (x - shift[:, None] - drift[:, None]) * rstd[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)[:, None]
    if HAS_BIAS:
        y += tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)[:, None]
    if HAS_PIXEL_INDEX:
        given = tl.load(pixel_index_ptr + pixel, mask=pixel < pixels, other=0)
        if WIDE:
            given = given.to(tl.int64)
        given_base = sample.to(tl.int64) * given_sample_stride
        given_at = channel[:, None] * given_channel_stride + given[None, :] * given_pixel_stride
    else:
        given_base = base
        given_at = at
    if HAS_MULTIPLIER:
        y *= tl.load(multiplier_ptr + given_base + given_at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADDEND:
        y += tl.load(addend_ptr + given_base + given_at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        y = silu(y, dtype == tl.float32)
    out_at = channel[:, None] * out_channel_stride + pixel[None, :] * out_pixel_stride
    tl.store(out_ptr + sample.to(tl.int64) * out_sample_stride + out_at, y.to(dtype), mask=inside)
