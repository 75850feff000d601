"""What the lowerings of conv3d share: pieces put together, layouts, frames, and the convolutions
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for

from rocm_passes.kernels.aten.fp16_range import Ranges
from rocm_passes.kernels.aten.memory_format import channels_last
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.frames import CHANNELS_BEHIND, CHANNELS_FIRST

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default
LOW_PRECISION = (torch.float16, torch.bfloat16)


class Writer(Protocol):
    """A graph Builder, or its eager stand-in."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any: ...
    def value(self, found: Any) -> torch.Tensor: ...


class Steps:
    """One call, and the small steps that its lowerings share."""

    def __init__(self, b: Writer, call: Conv3d) -> None:
        self.b = b
        self.call = call
        self.zeros = (int(call.zeros[0]), int(call.zeros[1]))
        self.dtype = b.value(call.x[0]).dtype
        self.compute = call.compute or self.dtype
        self.batch = b.value(call.x[0]).shape[0]
        self.bias: Any = call.bias
        self.axis = replace(
            call, x=tuple(b.value(piece) for piece in call.x), weight=b.value(call.weight)
        ).axis()
        self._ranges: Ranges | None = None
        self._bias_behind: Any = None
        if self.dtype is torch.float32 and self.compute is torch.float16:
            self._ranges = Ranges(b, call.x, call.weight)
            # The bias does not share their scale: it is added in float32 by `finished`.
            self.bias, self._bias_behind = None, call.bias

    def video(self, zeros: bool = True) -> Any:
        """The pieces as one tensor in the call's layout, with their zero frames where asked."""
        front, back = self.zeros if zeros else (0, 0)
        x = (
            self._joined(front, back)
            if len(self.call.x) > 1
            else self._padded(self.call.x[0], front, back)
        )
        return self.laid_out(self.cast(self._ranges.input(x) if self._ranges else x))

    def _joined(self, front: int, back: int) -> Any:
        # The largest piece is left for Inductor to compute in place inside the joined buffer. The
        # small ones, often caches of another layout, are turned first: reading them turned would
        # slow down the copy of all.
        sizes = [self.b.value(p).shape[2] for p in self.call.x]
        main = max(range(len(sizes)), key=lambda i: sizes[i] if isinstance(sizes[i], int) else 0)
        parts = [p if i == main else self.laid_out(p) for i, p in enumerate(self.call.x)]
        if front:
            parts.insert(0, self._zero_frames(front))
        if back:
            parts.append(self._zero_frames(back))
        return self._end_to_end(parts)

    def _end_to_end(self, parts: Sequence[Any]) -> Any:
        if not self.call.channels_last:
            return self.b(aten.cat.default, parts, 2)
        return self.channels_first(
            self.b(aten.cat.default, [self.channels_behind(p) for p in parts], 1)
        )

    def front_and_chunk(self) -> tuple[Any, Any]:
        """The pieces as two tensors, the first None where there is one piece. Of more, the fewest
        frames are copied.
        """
        x = self.call.x
        if len(x) == 1:
            return None, self._read(x)
        frames = [self.b.value(piece).shape[2] for piece in x]

        def copied(at: int) -> int:
            return sum(sum(part) for part in (frames[:at], frames[at:]) if len(part) > 1)

        at = min(range(1, len(x)), key=copied)
        return self._read(x[:at]), self._read(x[at:])

    def _read(self, pieces: Sequence[Any]) -> Any:
        x = pieces[0] if len(pieces) == 1 else self._end_to_end(pieces)
        return self.laid_out(self.cast(self._ranges.input(x) if self._ranges else x))

    def _padded(self, x: Any, front: int, back: int) -> Any:
        if not (front or back):
            return x
        pads = [front, back]
        if not self.call.channels_last:
            return self.b(aten.constant_pad_nd.default, x, [0, 0, 0, 0, *pads], 0.0)
        x = self.channels_behind(x)
        return self.channels_first(
            self.b(aten.constant_pad_nd.default, x, [0, 0, 0, 0, 0, 0, *pads], 0.0)
        )

    # Spelled over [N, T, H, W, C], a copy into a channels-last tensor is one loop over memory. Over
    # [N, C, T, H, W] Inductor goes through it by channels: 1.5 ms for a cat in CogVideoX's decoder
    # that should take 0.4 (H200).
    def channels_behind(self, x: Any) -> Any:
        return self.b(aten.permute.default, x, CHANNELS_BEHIND)

    def channels_first(self, x: Any) -> Any:
        return self.b(aten.permute.default, x, CHANNELS_FIRST)

    def _zero_frames(self, count: int) -> Any:
        like = self.b.value(self.call.x[0])
        n, c, _, h, w = like.shape
        return self.b(
            aten.full.default, [n, c, count, h, w], 0.0, dtype=like.dtype, device=like.device
        )

    def laid_out(self, x: Any) -> Any:
        """In the call's layout: channels-last is asked for; otherwise Inductor decides."""
        if not self.call.channels_last:
            return x
        return channels_last(self.b, x)

    def cast(self, x: Any) -> Any:
        return x if self.b.value(x).dtype is self.compute else self.b(convert, x, self.compute)

    def kernel(self) -> Any:
        return self.laid_out(self.kernel_as_is())

    def kernel_as_is(self) -> Any:
        """The weight in the compute dtype, in its own layout."""
        return self.cast(
            self._ranges.weight(self.call.weight) if self._ranges else self.call.weight
        )

    def kernels(self) -> Any:
        """[kT, O, C/groups, kH, kW]: a conv2d's kernel for each temporal tap.

        Channels-last they are dense: of one that is not, libraries make a copy of their own at each
        call.
        """
        kernels = self.b(aten.permute.default, self.kernel_as_is(), [2, 0, 1, 3, 4])
        if not self.call.channels_last:
            return kernels
        _, *of_one = self.b.value(kernels).shape
        strides = [math.prod(of_one), *make_channels_last_strides_for(of_one)]
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
            return self.b(
                aten.permute.default, self.b(aten.unsqueeze.default, y, 0), [0, 2, 1, 3, 4]
            )
        y = self.b(aten.reshape.default, y, [self.batch, t, o, h, w])
        return self.b(aten.permute.default, y, [0, 2, 1, 3, 4])

    def window(self, x: Any, start: int, count: Any) -> Any:
        """Every stride-th frame of x from `start`, `count` of them."""
        step = self.call.stride[0]
        end = start + (count - 1) * step + 1
        if start == 0 and step == 1 and same(end, self.b.value(x).shape[2]):
            return x
        return self.b(aten.slice.Tensor, x, 2, start, end, step)

    def convolve2d(self, frames: Any, kernel: Any, bias: Any) -> Any:
        return self._convolve(frames, self.laid_out(kernel), bias, 1, self.call.padding)

    def convolve3d(self, x: Any, bias: Any, time_padding: int = 0) -> Any:
        return self._convolve(x, self.kernel(), bias, 0, (time_padding, *self.call.padding))

    def _convolve(
        self, x: Any, kernel: Any, bias: Any, dims_from: int, padding: Sequence[int]
    ) -> Any:
        stride, dilation = list(self.call.stride[dims_from:]), list(self.call.dilation[dims_from:])
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
            self.call.groups,
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


def same(a: Any, b: Any) -> bool:
    """Are both numbers, and equal? Two symbolic sizes are not."""
    return isinstance(a, int) and isinstance(b, int) and a == b
