"""The device code: an implicit matrix product over the taps of a convolution, channels-last.

    out[m, o] = sum over taps and channels of x[pixel of m at the tap, c] * weight[o, tap, c]

A program computes BM consecutive pixels of one output frame by BN (+ BN2) channels. One frame has one set of live
temporal taps, and each tap reads one frame: of the cached ones or of the chunk. The loop runs over (tap, channel
block), so every step is one product and nothing is copied between memories but x and the weight.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated, no-redef"

from __future__ import annotations

import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import silu


@triton.jit
def _live_taps(first, frames, KT: tl.constexpr, DT: tl.constexpr):
    """The first temporal tap that sees a frame of [0, frames), and how many do; tap k sees first + k * DT."""
    begin = tl.where(first < 0, (DT - 1 - first) // DT, 0)
    end = tl.where(first < frames, (frames - first + DT - 1) // DT, 0)
    end = tl.minimum(end, KT)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def _inside(position, size):
    return (position >= 0) & (position < size)


@triton.jit
def _tap_bits(
    top, left, height, width, real, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr
):  # fmt: skip
    """One bit for each spatial tap: set where it sees a pixel of the frame."""
    bits = tl.zeros_like(top)
    for kh in tl.static_range(KH):
        row_inside = real & _inside(top + kh * DH, height)
        for kw in tl.static_range(KW):
            seen = row_inside & _inside(left + kw * DW, width)
            bits |= seen.to(tl.int32) << (kh * KW + kw)
    return bits


@triton.jit
def _finish(
    acc, out_ptr, out_rows, bias_ptr, res_ptr, res_rows, res_stride_c, channel, real,
    OUT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SILU: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Bias, residual and SiLU in fp32, then the one rounding."""
    inside = channel < OUT
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    mask = real[:, None] & inside[None, :]
    if WIDE:
        channel = channel.to(tl.int64)
    if HAS_RESIDUAL:
        at = res_rows[:, None] + (channel * res_stride_c)[None, :]
        acc += tl.load(res_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if SILU:
        acc = silu(acc, dtype == tl.float32)
    tl.store(out_ptr + out_rows[:, None] + channel[None, :], acc.to(dtype), mask=mask)


#: Sizes and counts: what divides them changes no code, so they get none of its variants.
SIZES = (
    "frames", "front_frames", "height", "width", "out_frames", "out_height", "out_width", "frame_blocks",
    "pixel_blocks",
)  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x_ptr, front_ptr, w_ptr, bias_ptr, res_ptr, out_ptr,
    frames, front_frames, height, width, out_frames, out_height, out_width, frame_blocks, pixel_blocks,
    x_stride_n, x_stride_t, front_stride_n, front_stride_t, stride_h, stride_w,
    res_stride_n, res_stride_t, res_stride_h, res_stride_w, res_stride_c,
    C: tl.constexpr, OUT: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DT: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    RT: tl.constexpr, RH: tl.constexpr, RW: tl.constexpr, SKIPPED: tl.constexpr,
    TIME_REPLICATE: tl.constexpr, SPACE_REPLICATE: tl.constexpr,
    HAS_FRONT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SILU: tl.constexpr,
    WIDE: tl.constexpr, WIDEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BN2: tl.constexpr, BK: tl.constexpr, UNROLL: tl.constexpr,
    GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """frames, height, width: x's own. RT, RH, RW: repeats; SKIPPED: repeated frames left out in front.

    x and front have channel stride 1 and share stride_h and stride_w; the weight is [O, KT, KH, KW, C], the result
    [N, T, H, W, O], both dense. WIDE: offsets within a frame need 64 bits. WIDEN: multiply in fp32 (the
    interpreter has no bf16).
    """
    SPOTS: tl.constexpr = KH * KW
    STEP: tl.constexpr = BK * UNROLL
    CHANNEL_BLOCKS: tl.constexpr = (C + STEP - 1) // STEP
    RAGGED: tl.constexpr = C % STEP != 0
    OUT_BLOCKS: tl.constexpr = (OUT + BN + BN2 - 1) // (BN + BN2)
    # One add a row and one shift a mask at each step; 31 bits hold the masks of 31 taps.
    BY_BITS: tl.constexpr = RH == 1 and RW == 1 and not SPACE_REPLICATE and SPOTS <= 31

    pid = tl.program_id(0)
    group = pid // (GROUP * OUT_BLOCKS)
    in_group = pid % (GROUP * OUT_BLOCKS)
    group_size = tl.minimum(pixel_blocks - group * GROUP, GROUP)
    pixel_block = group * GROUP + in_group % group_size
    out_block = in_group // group_size

    frame = pixel_block // frame_blocks
    pixel = (pixel_block % frame_blocks) * BM + tl.arange(0, BM)
    sample = (frame // out_frames).to(tl.int64)
    out_frame = frame % out_frames
    real = pixel < out_height * out_width
    out_h = pixel // out_width
    out_w = pixel % out_width
    top = out_h * SH - PH
    left = out_w * SW - PW
    if BY_BITS:
        bits = _tap_bits(top, left, height, width, real, KH, KW, DH, DW)
        if WIDE:
            row = top.to(tl.int64) * stride_h + left.to(tl.int64) * stride_w
        else:
            row = top * stride_h + left * stride_w

    seen_frames = front_frames + frames * RT - SKIPPED
    first_frame = out_frame * ST - PT
    if TIME_REPLICATE:
        first_tap = 0
        taps = KT
    else:
        first_tap, taps = _live_taps(first_frame, seen_frames, KT, DT)

    x_ptr += sample * x_stride_n
    if HAS_FRONT:
        front_ptr += sample * front_stride_n
    lane = tl.arange(0, BK)
    channel = out_block * (BN + BN2) + tl.arange(0, BN)
    if WIDE:
        w_rows = channel.to(tl.int64) * (KT * SPOTS * C)
    else:
        w_rows = channel * (KT * SPOTS * C)
    w_at = lane[:, None] + w_rows[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    if BN2 > 0:
        channel2 = out_block * (BN + BN2) + BN + tl.arange(0, BN2)
        if WIDE:
            w_rows2 = channel2.to(tl.int64) * (KT * SPOTS * C)
        else:
            w_rows2 = channel2 * (KT * SPOTS * C)
        w_at2 = lane[:, None] + w_rows2[None, :]
        acc2 = tl.zeros((BM, BN2), tl.float32)

    for step in tl.range(0, taps * (SPOTS * CHANNEL_BLOCKS), num_stages=STAGES):
        tap = step // CHANNEL_BLOCKS
        first_channel = (step % CHANNEL_BLOCKS) * STEP
        kt = first_tap + tap // SPOTS
        spot = tap % SPOTS
        kh = spot // KW
        kw = spot % KW

        seen = first_frame + kt * DT
        if TIME_REPLICATE:
            seen = tl.minimum(tl.maximum(seen, 0), seen_frames - 1)
        if HAS_FRONT:
            cached = front_ptr + seen.to(tl.int64) * front_stride_t
            of_chunk = x_ptr + (seen - front_frames).to(tl.int64) * x_stride_t
            a_ptr = tl.where(seen < front_frames, cached, of_chunk)
        else:
            a_ptr = x_ptr + ((seen + SKIPPED) // RT).to(tl.int64) * x_stride_t

        if BY_BITS:
            inside = ((bits >> spot) & 1) != 0
            if WIDE:
                a_ptr += (kh * DH).to(tl.int64) * stride_h + (kw * DW).to(tl.int64) * stride_w
            else:
                a_ptr += kh * DH * stride_h + kw * DW * stride_w
            a_row = row
        else:
            h = top + kh * DH
            w = left + kw * DW
            if SPACE_REPLICATE:
                inside = real
                h = tl.minimum(tl.maximum(h, 0), height * RH - 1)
                w = tl.minimum(tl.maximum(w, 0), width * RW - 1)
            else:
                inside = real & _inside(h, height * RH) & _inside(w, width * RW)
            if WIDE:
                a_row = (h // RH).to(tl.int64) * stride_h + (w // RW).to(tl.int64) * stride_w
            else:
                a_row = (h // RH) * stride_h + (w // RW) * stride_w

        b_ptr = w_ptr + (kt * SPOTS + spot) * C + first_channel
        a_ptr += first_channel
        for u in tl.static_range(UNROLL):
            a_mask = inside[:, None]
            w_mask = (channel < OUT)[None, :]
            if RAGGED:
                in_channels = lane < C - first_channel - u * BK
                a_mask = a_mask & in_channels[None, :]
                w_mask = w_mask & in_channels[:, None]
            a = tl.load(a_ptr + u * BK + a_row[:, None] + lane[None, :], mask=a_mask, other=0.0)
            b = tl.load(b_ptr + u * BK + w_at, mask=w_mask, other=0.0)
            if WIDEN:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision="ieee")
            if BN2 > 0:
                w_mask2 = (channel2 < OUT)[None, :]
                if RAGGED:
                    w_mask2 = w_mask2 & in_channels[:, None]
                b2 = tl.load(b_ptr + u * BK + w_at2, mask=w_mask2, other=0.0)
                if WIDEN:
                    b2 = b2.to(tl.float32)
                acc2 = tl.dot(a, b2, acc2, input_precision="ieee")

    out_ptr += frame.to(tl.int64) * out_height * out_width * OUT
    if WIDE:
        out_rows = pixel.to(tl.int64) * OUT
        res_rows = out_h.to(tl.int64) * res_stride_h + out_w.to(tl.int64) * res_stride_w
    else:
        out_rows = pixel * OUT
        res_rows = out_h * res_stride_h + out_w * res_stride_w
    if HAS_RESIDUAL:
        res_ptr += sample * res_stride_n + out_frame.to(tl.int64) * res_stride_t
    _finish(
        acc, out_ptr, out_rows, bias_ptr, res_ptr, res_rows, res_stride_c, channel, real,
        OUT, HAS_BIAS, HAS_RESIDUAL, SILU, WIDE,
    )  # fmt: skip
    if BN2 > 0:
        _finish(
            acc2, out_ptr, out_rows, bias_ptr, res_ptr, res_rows, res_stride_c, channel2, real,
            OUT, HAS_BIAS, HAS_RESIDUAL, SILU, WIDE,
        )  # fmt: skip
