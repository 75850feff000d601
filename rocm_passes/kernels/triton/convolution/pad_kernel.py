"""Device code of padding: every element of the padded tensor is read from where it comes from.

An element's place along one axis maps to the source's by clamping or reflecting, then by division
where pixels are repeated (nearest upsampling). `pad.py` and `group_norm_pad.py` plan the launches.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def source_index(place, front, size, skipped, REPEAT: tl.constexpr, MODE: tl.constexpr):
    """Along one axis: where the element at `place` of the padded tensor is read, and whether it is
    the source's.

    Between them stands the source with each element REPEAT times, without the first `skipped` of
    those; `front` elements of padding precede it. Every index that is returned lies in the source.
    """
    last = size * REPEAT - skipped - 1
    at = place - front
    inside = (at >= 0) & (at <= last)
    if MODE == "reflect":
        at = tl.abs(at)
        at = last - tl.abs(last - at)
    # Beyond the tensor's end stand lanes that are masked; "zeros" are masked, too.
    at = tl.minimum(tl.maximum(at, 0), tl.maximum(last, 0))
    return (at + skipped) // REPEAT, inside


@triton.jit
def source_offset(
    pixel, out_height, out_width, frames, height, width, front, top, left, skipped,
    frame_stride, row_stride, column_stride,
    REPEAT_T: tl.constexpr, REPEAT_H: tl.constexpr, REPEAT_W: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Where pixel number `pixel` of a padded sample is read, counted from the sample's first
    element, and whether it is the source's.
    """
    row = pixel // out_width
    t, in_time = source_index(row // out_height, front, frames, skipped, REPEAT_T, MODE)
    h, in_height = source_index(row % out_height, top, height, 0, REPEAT_H, MODE)
    w, in_width = source_index(pixel - row * out_width, left, width, 0, REPEAT_W, MODE)
    return t * frame_stride + h * row_stride + w * column_stride, in_time & in_height & in_width


@triton.jit
def pad_kernel(
    x_ptr, out_ptr, pixels, pixel_blocks, channel_blocks, out_height, out_width,
    frames, height, width, front, top, left, skipped,
    sample_stride, channel_stride, frame_stride, row_stride, column_stride,
    C: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    REPEAT_T: tl.constexpr, REPEAT_H: tl.constexpr, REPEAT_W: tl.constexpr, MODE: tl.constexpr,
    READ_LAST: tl.constexpr, WRITE_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of the padded tensor, [N, pixels, C] (WRITE_LAST) or [N, C, pixels] in memory.

    READ_LAST: the source's channels are its contiguous dim. A tile is read along the source's
    contiguous dim and written along the result's; where these differ it is turned in between.
    """
    EVEN: tl.constexpr = C % CHANNELS == 0
    pid = tl.program_id(0)
    if WRITE_LAST:
        channel_block = pid % channel_blocks
        pixel_block = (pid // channel_blocks) % pixel_blocks
    else:
        pixel_block = pid % pixel_blocks
        channel_block = (pid // pixel_blocks) % channel_blocks
    sample = (pid // pixel_blocks // channel_blocks).to(tl.int64)
    pixel = pixel_block * PIXELS + tl.arange(0, PIXELS)
    channel = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    if WIDE:
        pixel = pixel.to(tl.int64)
        channel = channel.to(tl.int64)
    at, inside = source_offset(
        pixel, out_height, out_width, frames, height, width, front, top, left, skipped,
        frame_stride, row_stride, column_stride, REPEAT_T, REPEAT_H, REPEAT_W, MODE,
    )  # fmt: skip
    pixel_mask = pixel < pixels
    channel_mask = channel < C
    readable = pixel_mask
    if MODE == "zeros":
        readable = readable & inside

    x_ptr += sample * sample_stride
    if READ_LAST:
        mask = readable[:, None] if EVEN else readable[:, None] & channel_mask[None, :]
        tile = tl.load(
            x_ptr + (at[:, None] + channel[None, :] * channel_stride), mask=mask, other=0
        )
        if not WRITE_LAST:
            tile = tl.trans(tile)
    else:
        mask = readable[None, :] if EVEN else readable[None, :] & channel_mask[:, None]
        tile = tl.load(
            x_ptr + (at[None, :] + channel[:, None] * channel_stride), mask=mask, other=0
        )
        if WRITE_LAST:
            tile = tl.trans(tile)

    out_ptr += sample * pixels * C
    if WRITE_LAST:
        mask = pixel_mask[:, None] if EVEN else pixel_mask[:, None] & channel_mask[None, :]
        tl.store(out_ptr + (pixel[:, None] * C + channel[None, :]), tile, mask=mask)
    else:
        mask = pixel_mask[None, :] if EVEN else pixel_mask[None, :] & channel_mask[:, None]
        tl.store(out_ptr + (channel[:, None] * pixels + pixel[None, :]), tile, mask=mask)
