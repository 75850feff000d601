"""The device code: an implicit matrix product over the taps of a convolution, channels-last.

    out[m, o] = sum over taps and channels of x[pixel of m at the tap, c] * weight[o, tap, c]

A program computes BM consecutive pixels of one output frame by BN (+ BN2) channels. A frame has one
set of live temporal taps, and each tap reads one frame: a cached one or one of the chunk. One flat
loop over taps and channel blocks, so that it is pipelined from end to end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated, no-redef"

from __future__ import annotations

import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import silu


@triton.jit
def _live_taps(first, frames, KT: tl.constexpr, DT: tl.constexpr):
    """The first temporal tap that sees a frame of [0, frames), and how many do.

    Tap k sees frame first + k * DT.
    """
    begin = tl.where(first < 0, (DT - 1 - first) // DT, 0)
    end = tl.where(first < frames, (frames - first + DT - 1) // DT, 0)
    end = tl.minimum(end, KT)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def _inside(position, size):
    return (position >= 0) & (position < size)


@triton.jit
def _tap_bits(
    top, left, height, width, real, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr,
    DW: tl.constexpr,
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
def _frame(
    x_ptr, front_ptr, seen, front_frames, seen_frames, x_stride_t, front_stride_t,
    RT: tl.constexpr, SKIPPED: tl.constexpr, REPLICATE: tl.constexpr, HAS_FRONT: tl.constexpr,
):  # fmt: skip
    """Where frame `seen` of the padded, upsampled input lies."""
    if REPLICATE:
        seen = tl.minimum(tl.maximum(seen, 0), seen_frames - 1)
    if HAS_FRONT:
        cached = front_ptr + seen.to(tl.int64) * front_stride_t
        of_chunk = x_ptr + (seen - front_frames).to(tl.int64) * x_stride_t
        found = tl.where(seen < front_frames, cached, of_chunk)
    else:
        found = x_ptr + ((seen + SKIPPED) // RT).to(tl.int64) * x_stride_t
    return found


@triton.jit
def _source(position, size, REPEAT: tl.constexpr, REPLICATE: tl.constexpr):
    """The pixel of x that stands at a position along one dim, padding and repeats counted."""
    if REPLICATE:
        position = tl.minimum(tl.maximum(position, 0), size * REPEAT - 1)
    # Positions before the first are masked: how they are rounded is no matter.
    if REPEAT == 2:
        position = position >> 1
    elif REPEAT != 1:
        position = position // REPEAT
    return position


@triton.jit
def _weights(pointers, in_channels, in_out, RAGGED: tl.constexpr, RAGGED_OUT: tl.constexpr):
    """One block of the weight, [channels, outputs]; a mask only where it can be false."""
    if RAGGED and RAGGED_OUT:
        block = tl.load(pointers, mask=in_channels[:, None] & in_out[None, :], other=0.0)
    elif RAGGED:
        block = tl.load(pointers, mask=in_channels[:, None], other=0.0)
    elif RAGGED_OUT:
        block = tl.load(pointers, mask=in_out[None, :], other=0.0)
    else:
        block = tl.load(pointers)
    return block


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
    "frames", "front_frames", "height", "width", "out_frames", "out_height", "out_width",
    "frame_blocks", "pixel_blocks",
)  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x_ptr, front_ptr, w_ptr, bias_ptr, res_ptr, out_ptr,
    frames, front_frames, height, width, out_frames, out_height, out_width,
    frame_blocks, pixel_blocks,
    x_stride_n, x_stride_t, front_stride_n, front_stride_t, stride_h, stride_w,
    res_stride_n, res_stride_t, res_stride_h, res_stride_w, res_stride_c,
    C: tl.constexpr, OUT: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DT: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    RT: tl.constexpr, RH: tl.constexpr, RW: tl.constexpr, SKIPPED: tl.constexpr,
    TIME_REPLICATE: tl.constexpr, SPACE_REPLICATE: tl.constexpr,
    HAS_FRONT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SILU: tl.constexpr,
    WIDE: tl.constexpr, WIDEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BN2: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """frames, height, width: x's own. RT, RH, RW: repeats of each. SKIPPED: of frames left out.

    x and front have channel stride 1 and share stride_h and stride_w. The weight is [OUT, KT, KH,
    KW, C], the result [N, T, H, W, OUT], both dense. WIDE: offsets within a frame need 64 bits.
    WIDEN: multiply in fp32 (the interpreter has no bf16).
    """
    SPOTS: tl.constexpr = KH * KW
    CHANNEL_BLOCKS: tl.constexpr = (C + BK - 1) // BK
    RAGGED: tl.constexpr = C % BK != 0
    OUT_BLOCKS: tl.constexpr = (OUT + BN + BN2 - 1) // (BN + BN2)
    RAGGED_OUT: tl.constexpr = OUT % (BN + BN2) != 0
    # A tap is then the same distance away from every pixel: one add a row at each step.
    PLAIN: tl.constexpr = RH == 1 and RW == 1 and not SPACE_REPLICATE
    # What each tap sees of the frame is known before the loop; 31 bits hold 31 taps.
    BY_BITS: tl.constexpr = not SPACE_REPLICATE and SPOTS <= 31

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
        bits = _tap_bits(top, left, height * RH, width * RW, real, KH, KW, DH, DW)
    if PLAIN:
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

    # Frames of up to three taps are found before the loop.
    seen = first_frame + first_tap * DT
    frame_ptr = _frame(
        x_ptr, front_ptr, seen, front_frames, seen_frames, x_stride_t, front_stride_t,
        RT, SKIPPED, TIME_REPLICATE, HAS_FRONT,
    )  # fmt: skip
    if KT == 2 or KT == 3:
        second_ptr = _frame(
            x_ptr, front_ptr, seen + DT, front_frames, seen_frames, x_stride_t, front_stride_t,
            RT, SKIPPED, TIME_REPLICATE, HAS_FRONT,
        )  # fmt: skip
    if KT == 3:
        third_ptr = _frame(
            x_ptr, front_ptr, seen + 2 * DT, front_frames, seen_frames, x_stride_t, front_stride_t,
            RT, SKIPPED, TIME_REPLICATE, HAS_FRONT,
        )  # fmt: skip

    # Counted up step by step: divisions of a step's number would take more instructions.
    first_channel = tl.full((), 0, tl.int32)
    kt = tl.full((), 0, tl.int32)
    kh = tl.full((), 0, tl.int32)
    kw = tl.full((), 0, tl.int32)
    bit = tl.full((), 1, tl.int32)
    b_ptr = w_ptr + first_tap * (SPOTS * C)
    for _ in tl.range(0, taps * (SPOTS * CHANNEL_BLOCKS), num_stages=STAGES):
        if KT == 1:
            a_ptr = frame_ptr
        elif KT == 2:
            a_ptr = tl.where(kt == 0, frame_ptr, second_ptr)
        elif KT == 3:
            a_ptr = tl.where(kt == 0, frame_ptr, tl.where(kt == 1, second_ptr, third_ptr))
        else:
            a_ptr = _frame(
                x_ptr, front_ptr, seen + kt * DT, front_frames, seen_frames,
                x_stride_t, front_stride_t, RT, SKIPPED, TIME_REPLICATE, HAS_FRONT,
            )  # fmt: skip

        if BY_BITS:
            inside = (bits & bit) != 0
        elif SPACE_REPLICATE:
            inside = real
        else:
            inside = real & _inside(top + kh * DH, height * RH)
            inside = inside & _inside(left + kw * DW, width * RW)
        if PLAIN:
            a_row = row
            if WIDE:
                a_ptr += kh.to(tl.int64) * stride_h * DH + kw.to(tl.int64) * stride_w * DW
            else:
                a_ptr += kh * (stride_h * DH) + kw * (stride_w * DW) + first_channel
        else:
            h = _source(top + kh * DH, height, RH, SPACE_REPLICATE)
            w = _source(left + kw * DW, width, RW, SPACE_REPLICATE)
            if WIDE:
                a_row = h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
            else:
                a_row = h * stride_h + w * stride_w
        if WIDE or not PLAIN:
            a_ptr += first_channel

        a_mask = inside[:, None]
        in_channels = lane < C - first_channel
        if RAGGED:
            a_mask = a_mask & in_channels[None, :]
        a = tl.load(a_ptr + a_row[:, None] + lane[None, :], mask=a_mask, other=0.0)
        b = _weights(b_ptr + w_at, in_channels, channel < OUT, RAGGED, RAGGED_OUT)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if BN2 > 0:
            b2 = _weights(b_ptr + w_at2, in_channels, channel2 < OUT, RAGGED, RAGGED_OUT)
            if WIDEN:
                b2 = b2.to(tl.float32)
            acc2 = tl.dot(a, b2, acc2, input_precision="ieee")

        next_tap = first_channel == (CHANNEL_BLOCKS - 1) * BK
        if RAGGED:
            b_ptr += tl.where(next_tap, C - (CHANNEL_BLOCKS - 1) * BK, BK)
        else:
            b_ptr += BK
        first_channel = tl.where(next_tap, 0, first_channel + BK)
        bit = tl.where(next_tap, bit << 1, bit)
        kw = tl.where(next_tap, kw + 1, kw)
        next_row = kw == KW
        kw = tl.where(next_row, 0, kw)
        kh = tl.where(next_row, kh + 1, kh)
        next_frame = kh == KH
        kh = tl.where(next_frame, 0, kh)
        bit = tl.where(next_frame, 1, bit)
        kt = tl.where(next_frame, kt + 1, kt)

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
