"""Lowerings of conv3d in plain ATen: exact algebra, written into the graph, which Inductor plans and fuses.

A call, as every lowering takes it:
    x             pieces [N, C, T_i, H, W] that stand end to end in time (one, where nothing was absorbed)
    zeros         zero frames before and after them
    weight        [O, C/groups, kT, kH, kW]; bias [O] or None
    stride, dilation  as of torch.nn.functional.conv3d, 3-tuples; padding: (H, W), zeros on both sides; groups
    channels_last whether x, the weight and the result are channels-last in memory
    compute       dtype to convolve in, or None for x's own (float32 in float16: scaled into its range, fp16_range.py)
and gives [N, O, T', H', W'] in x's dtype. The weight is only viewed or re-ordered inside the graph: nothing
is kept outside it that a later change of the weight (a LoRA merge, a cast) could leave stale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch._inductor import inductor_prims

from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.conv3d.fp16_range import Ranges
from rocm_passes.ops.conv3d.frames import Tap, TimeAxis, axis_of, frames_of

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default
LOW_PRECISION = (torch.float16, torch.bfloat16)
#: Output frames of one tile of `tiled` and `taps_tiled`: enough to fill a GPU, few enough to bound workspaces.
TILE_FRAMES = 4
#: [N, C, T, H, W] to [N, T, H, W, C] and back, as a channels-last cat is spelled.
CHANNELS_BEHIND, CHANNELS_FIRST = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]


class Writer(Protocol):
    """A graph Builder, or its eager stand-in."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any: ...
    def value(self, found: Any) -> torch.Tensor: ...


class Call:
    """One call's parameters and the small steps that lowerings share."""

    def __init__(
        self,
        b: Writer,
        x: Sequence[Any],
        weight: Any,
        bias: Any,
        zeros: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        channels_last: bool = False,
        compute: torch.dtype | None = None,
    ) -> None:
        self.b = b
        self.pieces = list(x)
        self.weight = weight
        self.bias = bias
        self.zeros = (int(zeros[0]), int(zeros[1]))
        self.stride = tuple(stride)
        self.padding = tuple(padding)
        self.dilation = tuple(dilation)
        self.groups = groups
        self.channels_last = channels_last
        self.dtype = b.value(self.pieces[0]).dtype
        self.compute = compute or self.dtype
        self.batch = b.value(self.pieces[0]).shape[0]
        values = [b.value(p) for p in self.pieces]
        self.axis: TimeAxis = axis_of(values, b.value(weight), self.zeros, self.stride, self.dilation)
        self._ranges: Ranges | None = None
        self._bias_behind: Any = None
        if self.dtype is torch.float32 and self.compute is torch.float16:
            self._ranges = Ranges(b, self.pieces, weight)
            # The bias does not share their scale: it is added in float32 by `finished`.
            self.bias, self._bias_behind = None, bias

    def video(self, zeros: bool = True) -> Any:
        """The pieces as one tensor in the call's layout, with their zero frames where asked."""
        front, back = self.zeros if zeros else (0, 0)
        x = self._joined(front, back) if len(self.pieces) > 1 else self._padded(self.pieces[0], front, back)
        return self.laid_out(self.cast(self._ranges.input(x) if self._ranges else x))

    def _joined(self, front: int, back: int) -> Any:
        # The largest piece is left for Inductor to compute in place inside the joined buffer. The small ones, often
        # caches of another layout, are turned first: reading them turned would slow down the copy of all.
        sizes = [self.b.value(p).shape[2] for p in self.pieces]
        main = max(range(len(sizes)), key=lambda i: sizes[i] if isinstance(sizes[i], int) else 0)
        parts = [p if i == main else self.laid_out(p) for i, p in enumerate(self.pieces)]
        if front:
            parts.insert(0, self._zero_frames(front))
        if back:
            parts.append(self._zero_frames(back))
        if not self.channels_last:
            return self.b(aten.cat.default, parts, 2)
        return self._channels_first(self.b(aten.cat.default, [self._channels_behind(p) for p in parts], 1))

    def _padded(self, x: Any, front: int, back: int) -> Any:
        if not (front or back):
            return x
        pads = [front, back]
        if not self.channels_last:
            return self.b(aten.constant_pad_nd.default, x, [0, 0, 0, 0, *pads], 0.0)
        x = self._channels_behind(x)
        return self._channels_first(self.b(aten.constant_pad_nd.default, x, [0, 0, 0, 0, 0, 0, *pads], 0.0))

    # Spelled over [N, T, H, W, C], a copy into a channels-last tensor is one loop over memory. Over [N, C, T, H, W]
    # Inductor goes through it by channels: 1.5 ms for a cat in CogVideoX's decoder that should take 0.4 (H200).
    def _channels_behind(self, x: Any) -> Any:
        return self.b(aten.permute.default, x, CHANNELS_BEHIND)

    def _channels_first(self, x: Any) -> Any:
        return self.b(aten.permute.default, x, CHANNELS_FIRST)

    def _zero_frames(self, count: int) -> Any:
        like = self.b.value(self.pieces[0])
        n, c, _, h, w = like.shape
        return self.b(aten.full.default, [n, c, count, h, w], 0.0, dtype=like.dtype, device=like.device)

    def laid_out(self, x: Any) -> Any:
        """In the call's layout: channels-last is asked for; otherwise Inductor decides."""
        if not self.channels_last:
            return x
        return self.b(inductor_prims.force_stride_order, x, channels_last_strides(self.b.value(x).shape))

    def cast(self, x: Any) -> Any:
        return x if self.b.value(x).dtype is self.compute else self.b(convert, x, self.compute)

    def kernel(self) -> Any:
        return self.laid_out(self.kernel_as_is())

    def kernel_as_is(self) -> Any:
        """The weight in the compute dtype, in its own layout."""
        return self.cast(self._ranges.weight(self.weight) if self._ranges else self.weight)

    def kernels(self) -> Any:
        """[kT, O, C/groups, kH, kW]: a conv2d's kernel for each temporal tap.

        Channels-last they are dense: of one that is not, libraries make a copy of their own at each call.
        """
        kernels = self.b(aten.permute.default, self.kernel_as_is(), [2, 0, 1, 3, 4])
        if not self.channels_last:
            return kernels
        _, *of_one = self.b.value(kernels).shape
        strides = [math.prod(of_one), *channels_last_strides(of_one)]
        return self.b(inductor_prims.force_stride_order, kernels, strides)

    def frames(self, x: Any) -> Any:
        """[N, C, T, H, W] to [N*T, C, H, W]: a view in either layout where N is 1."""
        n, c, t, h, w = self.b.value(x).shape
        if isinstance(n, int) and n == 1:
            return self.b(aten.permute.default, self.b(aten.squeeze.dim, x, 0), [1, 0, 2, 3])
        return self.b(
            aten.reshape.default, self.b(aten.permute.default, x, [0, 2, 1, 3, 4]), [n * t, c, h, w]
        )

    def unframed(self, y: Any, t: Any) -> Any:
        """[N*T, O, H, W] to [N, O, T, H, W], a view."""
        _, o, h, w = self.b.value(y).shape
        if isinstance(self.batch, int) and self.batch == 1:
            # In this order the batch has the largest stride, from which torch tells the layout.
            return self.b(aten.permute.default, self.b(aten.unsqueeze.default, y, 0), [0, 2, 1, 3, 4])
        y = self.b(aten.reshape.default, y, [self.batch, t, o, h, w])
        return self.b(aten.permute.default, y, [0, 2, 1, 3, 4])

    def window(self, x: Any, start: int, count: Any) -> Any:
        """Every stride-th frame of x from `start`, `count` of them."""
        step = self.stride[0]
        end = start + (count - 1) * step + 1
        if start == 0 and step == 1 and _same(end, self.b.value(x).shape[2]):
            return x
        return self.b(aten.slice.Tensor, x, 2, start, end, step)

    def convolve2d(self, frames: Any, kernel: Any, bias: Any) -> Any:
        return self._convolve(frames, self.laid_out(kernel), bias, 1, self.padding)

    def convolve3d(self, x: Any, bias: Any, time_padding: int = 0) -> Any:
        return self._convolve(x, self.kernel(), bias, 0, (time_padding, *self.padding))

    def _convolve(self, x: Any, kernel: Any, bias: Any, dims_from: int, padding: Sequence[int]) -> Any:
        stride, dilation = list(self.stride[dims_from:]), list(self.dilation[dims_from:])
        none = [0] * len(stride)
        bias = None if bias is None else self.cast(bias)
        return self.b(
            aten.convolution.default,
            x,
            kernel,
            bias,
            stride,
            list(padding),
            dilation,
            False,
            none,
            self.groups,
        )

    def finished(self, y: Any, behind: bool = False) -> Any:
        """The result in x's dtype. behind: its channels are the last dim."""
        if self.b.value(y).dtype is not self.dtype:
            y = self.b(convert, y, self.dtype)
        if self._ranges is not None:
            y = self._ranges.back(y)
        return y if self._bias_behind is None else self.plus_bias(y, self._bias_behind, behind)

    def plus_bias(self, y: Any, bias: Any, behind: bool) -> Any:
        bias = bias if behind else self.b(aten.reshape.default, bias, [1, -1, 1, 1, 1])
        return self.b(aten.add.Tensor, y, bias)


def write_direct(b: Writer, **call: Any) -> Any:
    """conv3d itself, with spatial zeros as its own padding and the time axis put together."""
    c = Call(b, **call)
    if len(c.pieces) == 1 and c.zeros[0] == c.zeros[1]:
        return c.finished(c.convolve3d(c.video(zeros=False), c.bias, time_padding=c.zeros[0]))
    return c.finished(c.convolve3d(c.video(), c.bias))


def write_taps(b: Writer, **call: Any) -> Any:
    """The sum of one conv2d per temporal tap, taps on zero frames left out; no unfolded copy.

    Partial sums are added in fp32. Source: numz/ComfyUI-SeedVR2_VideoUpscaler#634.
    """
    c = Call(b, **call)
    return c.finished(_sum_of_taps(c, c.video(zeros=False), c.kernels(), c.axis.taps(), c.axis.out))


def write_taps_tiled(b: Writer, **call: Any) -> Any:
    """The sum over taps for a few output frames at a time: one tile's taps are alive, not those of all frames.

    Each sum is written where it belongs in the result before the next tile is convolved.
    """
    c = Call(b, **call)
    x, kernels = c.video(zeros=False), c.kernels()
    parts = []
    for taps, count in tiles_of_taps(c.axis):
        part = _sum_of_taps(c, x, kernels, taps, count, behind=c.channels_last)
        part = c.finished(part, behind=c.channels_last)
        parts.append(b(COMPUTED.overload, part))
    y = b(aten.cat.default, parts, 1 if c.channels_last else 2)
    return c._channels_first(y) if c.channels_last else y


def tiles_of_taps(axis: TimeAxis) -> list[tuple[list[Tap], int]]:
    """The tiles of `taps_tiled`: the taps of each, with outputs counted from its first, and how many it has."""
    size = TILE_FRAMES if axis.out > TILE_FRAMES else 1
    tiles = []
    for first in range(0, axis.out, size):
        count = min(size, axis.out - first)
        tiles.append(([t for tap in axis.taps() for t in tap.within(first, count, axis.stride)], count))
    return tiles


def _sum_of_taps(c: Call, x: Any, kernels: Any, taps: Sequence[Tap], out: Any, behind: bool = False) -> Any:
    """[N, O, out, H', W'], or with the channels behind; in fp32 where the taps are of low precision."""
    b = c.b
    parts = []
    for tap in taps:
        frames = c.frames(c.window(x, tap.start, tap.count))
        y = c.convolve2d(frames, b(aten.select.int, kernels, 0, tap.index), None)
        video = c.unframed(y, tap.count)
        if behind:
            video = c._channels_behind(video)
        if y_dtype(b, y) in LOW_PRECISION:
            video = b(convert, video, torch.float32)
        after = out - tap.first - tap.count
        if tap.first or not _same(after, 0):
            pads = [0, 0, 0, 0] + ([0, 0] if behind else []) + [tap.first, after]
            video = b(aten.constant_pad_nd.default, video, pads, 0.0)
        parts.append(video)
    total = parts[0]
    for part in parts[1:]:
        total = b(aten.add.Tensor, total, part)
    return total if c.bias is None else c.plus_bias(total, c.cast(c.bias), behind)


def write_conv2d(b: Writer, **call: Any) -> Any:
    """One conv2d on frames: one temporal tap does all the work (the only one, or the only on real frames)."""
    c = Call(b, **call)
    (tap,) = c.axis.taps()
    frames = c.frames(c.window(c.video(zeros=False), tap.start, tap.count))
    y = c.convolve2d(frames, b(aten.select.int, c.kernel_as_is(), 2, tap.index), c.bias)
    return c.finished(c.unframed(y, tap.count))


def write_unfold(b: Writer, **call: Any) -> Any:
    """One conv2d over every output frame's temporal window: the kT input frames become channels.

    The unfolded copy is kT times the input. Source: the temporal unfold of sgl-project/sglang#22971.
    """
    c = Call(b, **call)
    x = c.video()
    count = c.axis.out
    windows = [c.frames(c.window(x, k * c.dilation[0], count)) for k in range(c.axis.kernel)]
    o, per_group, kt, kh, kw = b.value(c.weight).shape
    # Channel-major, tap-minor: the order of weight[O, C/groups, kT, ...] read as a 2-D kernel.
    stacked = b(aten.cat.default, [b(aten.unsqueeze.default, w, 2) for w in windows], 2)
    t, channels, _, h, w = b.value(stacked).shape
    frames = c.laid_out(b(aten.reshape.default, stacked, [t, channels * kt, h, w]))
    kernel = b(aten.reshape.default, c.kernel_as_is(), [o, per_group * kt, kh, kw])
    return c.finished(c.unframed(c.convolve2d(frames, kernel, c.bias), count))


def write_matmul(b: Writer, **call: Any) -> Any:
    """Kernel = stride (a patch embedding, or 1x1x1): each input element is read once; one matrix product."""
    c = Call(b, **call)
    o, channels, *kernel = b.value(c.weight).shape
    x = c.video(zeros=False)
    n, _, t, h, w = b.value(x).shape
    sizes = [s // k for s, k in zip((t, h, w), kernel, strict=True)]
    for dim, (size, k) in enumerate(zip(sizes, kernel, strict=True), start=2):
        x = b(aten.slice.Tensor, x, dim, 0, size * k) if not _same(size * k, (t, h, w)[dim - 2]) else x
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


def write_tiled(b: Writer, **call: Any) -> Any:
    """conv3d over a few output frames at a time: bounds the workspace of libraries that unroll the input."""
    c = Call(b, **call)
    x = c.video()
    tiles = []
    for first in range(0, c.axis.out, TILE_FRAMES):
        count = min(TILE_FRAMES, c.axis.out - first)
        start = first * c.stride[0]
        end = start + (count - 1) * c.stride[0] + c.dilation[0] * (c.axis.kernel - 1) + 1
        tiles.append(c.convolve3d(c.laid_out(b(aten.slice.Tensor, x, 2, start, end)), c.bias))
    return c.finished(tiles[0] if len(tiles) == 1 else b(aten.cat.default, tiles, 2))


def write_rounded_up(b: Writer, write: Any, extra_frames: int, **call: Any) -> Any:
    """The lowering over more frames than there are: zero frames behind them, and the results of those left out.

    So chunks of neighbouring lengths are convolutions of one size, tuned once.
    """
    pieces = call["x"]
    n, c, _, h, w = b.value(pieces[-1]).shape
    like = b.value(pieces[-1])
    size = [n, c, extra_frames * call["stride"][0], h, w]
    zeros = b(aten.full.default, size, 0.0, dtype=like.dtype, device=like.device)
    y = write(b, **{**call, "x": (*pieces, zeros)})
    return b(aten.slice.Tensor, y, 2, 0, b.value(y).shape[2] - extra_frames)


def channels_last_strides(shape: Sequence[Any]) -> list[Any]:
    """Dense strides of [N, C, ...] with the channels innermost."""
    strides: list[Any] = [1] * len(shape)
    step = shape[1]
    for dim in reversed(range(2, len(shape))):
        strides[dim] = step
        step = step * shape[dim]
    strides[0] = step
    return strides


def y_dtype(b: Writer, y: Any) -> torch.dtype:
    return b.value(y).dtype


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


__all__ = ["Call", "Writer", "channels_last_strides", "frames_of"]
