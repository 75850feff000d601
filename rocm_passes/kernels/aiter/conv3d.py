"""conv3d through aiter: frames are joined first, since aiter pads both ends of time alike.

aiter's kernels read channels-last tensors. In a graph of another memory format the lowerings write
copies of the input and of the result, which a measurement counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rocm_passes.kernels.aiter.aiter_conv import needs_conv
from rocm_passes.kernels.aiter.conv_contract import ConvEntry, refusal
from rocm_passes.kernels.aten.conv3d import compute_note
from rocm_passes.kernels.aten.conv3d_steps import Steps, Writer
from rocm_passes.kernels.aten.conv3d_write import write_rounded_up
from rocm_passes.kernels.aten.memory_format import as_the_graphs
from rocm_passes.ops.aiter_conv import AITER_CONV, AiterConv
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.time_axis import TimeAxis
from rocm_passes.target import Target

#: aten's convolutions come behind, so that a rule for aiter's is asked first.
BEFORE = "conv2d"


def _write(b: Writer, call: Conv3d, entry: ConvEntry) -> Any:
    c = Steps(b, replace(call, channels_last=True))
    if over_frames(c.axis):
        (tap,) = c.axis.taps()
        frames = c.frames(c.window(c.video(zeros=False), tap.start, tap.count))
        kernel = b(torch.ops.aten.select.int, c.kernel_as_is(), 2, tap.index)
        made = AITER_CONV.write(b, _call(call, frames, kernel, c.bias, None), entry)
        y = c.finished(c.unframed(made, tap.count))
    else:
        same = len(call.x) == 1 and call.zeros[0] == call.zeros[1]
        x = c.video(zeros=not same)
        time = int(call.zeros[0]) if same else 0
        y = c.finished(AITER_CONV.write(b, _call(call, x, c.kernel_as_is(), c.bias, time), entry))
    return as_the_graphs(b, y, call.channels_last)


def over_frames(axis: TimeAxis) -> bool:
    """A single temporal tap feeds all outputs: a kernel of one frame, an image, or the first frame
    of a video. Then it is a conv2d over frames.
    """
    taps = axis.taps()
    return len(taps) == 1 and bool(taps[0].count == axis.out)


def _call(call: Conv3d, x: Any, weight: Any, bias: Any, time_padding: int | None) -> AiterConv:
    """time_padding: None of a convolution over frames."""
    first = 1 if time_padding is None else 0
    padding = (*(() if time_padding is None else (time_padding,)), *call.padding)
    stride, dilation = tuple(call.stride)[first:], tuple(call.dilation)[first:]
    return AiterConv(x, weight, bias, stride, padding, dilation, call.groups)


def _refuses(call: Conv3d, target: Target, entry: ConvEntry) -> str | None:
    if not call.has_numbers():
        return "its sizes are symbolic"
    return refusal(_shaped(call), entry, target.arch)


def _shaped(call: Conv3d) -> AiterConv:
    """The call that `_write` makes, of empty tensors that take no memory."""
    dtype = call.compute or call.x[0].dtype
    axis = call.axis()
    n, channels, _, *size = call.x[0].shape
    weight, zeros = list(call.weight.shape), sum(call.zeros)
    bias = None if call.bias is None else _like(call.bias, call.bias.shape, dtype)
    if over_frames(axis):
        x = _like(call.x[0], (n * axis.out, channels, *size), dtype)
        kernel = _like(call.weight, (*weight[:2], *weight[3:]), dtype)
        return _call(call, x, kernel, bias, None)
    x = _like(call.x[0], (n, channels, axis.frames + zeros, *size), dtype)
    return _call(call, x, _like(call.weight, weight, dtype), bias, 0)


def _like(t: Tensor, shape: Any, dtype: torch.dtype) -> Tensor:
    """An expanded element: sizes, dtype and device of a tensor that is not there yet."""
    return t.new_empty((), dtype=dtype).expand(tuple(shape))


def _register(name: str, entry: ConvEntry) -> None:
    def write(b: Any, call: Conv3d) -> Any:
        def once(b: Any, call: Conv3d) -> Any:
            return _write(b, call, entry)

        return write_rounded_up(b, once, call) if call.extra_frames else once(b, call)

    CONV3D.register(
        Lowering(
            name,
            requires=(needs_conv(entry),),
            refuses=lambda call, target: _refuses(call, target, entry),
            note=compute_note,
            write=write,
        ),
        before=BEFORE,
    )


_register("aiter_flydsl", "flydsl")
_register("aiter_triton", "triton")
