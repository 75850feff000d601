"""Lowerings of conv3d in plain ATen: exact algebra, written into the graph, which Inductor plans
and fuses.

The weight is only viewed or reordered inside the graph: nothing is kept outside it that a later
change of the weight (a LoRA merge, a cast) could leave stale. float32 in float16 is scaled into its
range (fp16_range.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rocm_passes.kernels.aten.conv3d_steps import LOW_PRECISION, Steps, Writer, aten, convert, same
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.time_axis import Tap, TimeAxis

#: Output frames of one tile of `tiled` and `taps_tiled`: enough to fill a GPU, few enough to bound
#: workspaces.
TILE_FRAMES = 4


def write_direct(b: Writer, call: Conv3d) -> Any:
    """conv3d itself, with spatial zeros as its own padding and the time axis put together."""
    c = Steps(b, call)
    if len(call.x) == 1 and c.zeros[0] == c.zeros[1]:
        return c.finished(c.convolve3d(c.video(zeros=False), c.bias, time_padding=c.zeros[0]))
    return c.finished(c.convolve3d(c.video(), c.bias))


def write_taps(b: Writer, call: Conv3d) -> Any:
    """The sum of one conv2d per temporal tap, taps on zero frames left out; no unfolded copy.

    Partial sums are added in fp32. Source: numz/ComfyUI-SeedVR2_VideoUpscaler#634.
    """
    c = Steps(b, call)
    return c.finished(_sum_of_taps(c, c.video(zeros=False), c.kernels(), c.axis.taps(), c.axis.out))


def write_taps_tiled(b: Writer, call: Conv3d) -> Any:
    """The sum over taps for a few output frames at a time: one tile's taps are alive, not those of
    all frames.

    Each sum is written where it belongs in the result before the next tile is convolved.
    """
    c = Steps(b, call)
    x, kernels = c.video(zeros=False), c.kernels()
    parts = []
    for taps, count in tiles_of_taps(c.axis):
        part = _sum_of_taps(c, x, kernels, taps, count, behind=call.channels_last)
        part = c.finished(part, behind=call.channels_last)
        parts.append(b(COMPUTED.overload, part))
    y = b(aten.cat.default, parts, 1 if call.channels_last else 2)
    return c.channels_first(y) if call.channels_last else y


def tiles_of_taps(axis: TimeAxis) -> list[tuple[list[Tap], int]]:
    """The tiles of `taps_tiled`: the taps of each, with outputs counted from its first, and how
    many it has.
    """
    size = TILE_FRAMES if axis.out > TILE_FRAMES else 1
    tiles = []
    for first in range(0, axis.out, size):
        count = min(size, axis.out - first)
        tiles.append(
            ([t for tap in axis.taps() for t in tap.within(first, count, axis.stride)], count)
        )
    return tiles


def _sum_of_taps(
    c: Steps, x: Any, kernels: Any, taps: Sequence[Tap], out: Any, behind: bool = False
) -> Any:
    """[N, O, out, H', W'], or with the channels behind; in fp32 where the taps are of low
    precision.
    """
    b = c.b
    parts = []
    for tap in taps:
        frames = c.frames(c.window(x, tap.start, tap.count))
        y = c.convolve2d(frames, b(aten.select.int, kernels, 0, tap.index), None)
        video = c.unframed(y, tap.count)
        if behind:
            video = c.channels_behind(video)
        if b.value(y).dtype in LOW_PRECISION:
            video = b(convert, video, torch.float32)
        after = out - tap.first - tap.count
        if tap.first or not same(after, 0):
            pads = [0, 0, 0, 0] + ([0, 0] if behind else []) + [tap.first, after]
            video = b(aten.constant_pad_nd.default, video, pads, 0.0)
        parts.append(video)
    total = parts[0]
    for part in parts[1:]:
        total = b(aten.add.Tensor, total, part)
    return total if c.bias is None else c.plus_bias(total, c.cast(c.bias), behind)


def write_conv2d(b: Writer, call: Conv3d) -> Any:
    """One conv2d on frames: one temporal tap does all the work (the only one, or the only on real
    frames).
    """
    c = Steps(b, call)
    (tap,) = c.axis.taps()
    frames = c.frames(c.window(c.video(zeros=False), tap.start, tap.count))
    y = c.convolve2d(frames, b(aten.select.int, c.kernel_as_is(), 2, tap.index), c.bias)
    return c.finished(c.unframed(y, tap.count))


def write_unfold(b: Writer, call: Conv3d) -> Any:
    """One conv2d over every output frame's temporal window: the kT input frames become channels.

    The unfolded copy is kT times the input. Source: the temporal unfold of
    sgl-project/sglang#22971.
    """
    c = Steps(b, call)
    x = c.video()
    count = c.axis.out
    windows = [c.frames(c.window(x, k * call.dilation[0], count)) for k in range(c.axis.kernel)]
    o, per_group, kt, kh, kw = b.value(call.weight).shape
    # Channel-major, tap-minor: the order of weight[O, C/groups, kT, ...] read as a 2-D kernel.
    stacked = b(aten.cat.default, [b(aten.unsqueeze.default, w, 2) for w in windows], 2)
    t, channels, _, h, w = b.value(stacked).shape
    frames = c.laid_out(b(aten.reshape.default, stacked, [t, channels * kt, h, w]))
    kernel = b(aten.reshape.default, c.kernel_as_is(), [o, per_group * kt, kh, kw])
    return c.finished(c.unframed(c.convolve2d(frames, kernel, c.bias), count))


def write_matmul(b: Writer, call: Conv3d) -> Any:
    """Kernel = stride (a patch embedding, or 1x1x1): each input element is read once; one matrix
    product.
    """
    c = Steps(b, call)
    o, channels, *kernel = b.value(call.weight).shape
    x = c.video(zeros=False)
    n, _, t, h, w = b.value(x).shape
    sizes = [s // k for s, k in zip((t, h, w), kernel, strict=True)]
    for dim, (size, k) in enumerate(zip(sizes, kernel, strict=True), start=2):
        x = (
            b(aten.slice.Tensor, x, dim, 0, size * k)
            if not same(size * k, (t, h, w)[dim - 2])
            else x
        )
    if tuple(kernel) != (1, 1, 1):
        split = [d for size, k in zip(sizes, kernel, strict=True) for d in (size, k)]
        x = b(aten.reshape.default, x, [n, channels, *split])
        x = b(aten.permute.default, x, [0, 2, 4, 6, 1, 3, 5, 7])
    else:
        x = b(aten.permute.default, x, [0, 2, 3, 4, 1])
    rows = b(aten.reshape.default, x, [-1, channels * kernel[0] * kernel[1] * kernel[2]])
    matrix = b(aten.reshape.default, c.kernel_as_is(), [o, -1])
    matrix = b(aten.permute.default, matrix, [1, 0])
    if c.bias is None:
        y = b(aten.mm.default, rows, matrix)
    else:
        y = b(aten.addmm.default, c.cast(c.bias), rows, matrix)
    y = b(aten.reshape.default, y, [n, *sizes, o])
    return c.finished(b(aten.permute.default, y, [0, 4, 1, 2, 3]))


def write_tiled(b: Writer, call: Conv3d) -> Any:
    """conv3d over a few output frames at a time: bounds the workspace of libraries that unroll the
    input.
    """
    c = Steps(b, call)
    x = c.video()
    tiles = []
    for first in range(0, c.axis.out, TILE_FRAMES):
        count = min(TILE_FRAMES, c.axis.out - first)
        start = first * call.stride[0]
        end = start + (count - 1) * call.stride[0] + call.dilation[0] * (c.axis.kernel - 1) + 1
        tiles.append(c.convolve3d(c.laid_out(b(aten.slice.Tensor, x, 2, start, end)), c.bias))
    return c.finished(tiles[0] if len(tiles) == 1 else b(aten.cat.default, tiles, 2))


def write_rounded_up(b: Writer, write: Callable[[Any, Conv3d], Any], call: Conv3d) -> Any:
    """The lowering over more frames than there are: zero frames behind them, and the results of
    those left out.

    So chunks of neighbouring lengths are convolutions of one size, tuned once.
    """
    like = b.value(call.x[-1])
    n, c, _, h, w = like.shape
    size = [n, c, call.extra_frames * call.stride[0], h, w]
    zeros = b(aten.full.default, size, 0.0, dtype=like.dtype, device=like.device)
    y = write(b, replace(call, x=(*call.x, zeros), extra_frames=0))
    return b(aten.slice.Tensor, y, 2, 0, b.value(y).shape[2] - call.extra_frames)
