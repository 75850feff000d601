"""conv3d to few channels: what each spatial tap gives is a channel of the Triton convolution.

With 3 output channels an implicit matrix product reads each pixel once for each of 3x3 taps, to
multiply it by a matrix of 3 columns. Here the taps are columns too, 27 of them: each pixel is read
once for each temporal tap. The columns are sums in float32, which Inductor's code adds, each moved
to where its tap saw it:

    s[t, h, w, (i, j, o)] = sum over k, c of x[t + k, h, w, c] * weight[o, c, k, i, j]
    y[t, h, w, o]         = sum over i, j of s[t, h + i - pad, w + j - pad, (i, j, o)] + bias[o]

All of it is rounded once, as in conv3d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rocm_passes.kernels.aten.conv3d import compute_note
from rocm_passes.kernels.aten.conv3d_steps import Steps, Writer, aten
from rocm_passes.kernels.aten.memory_format import as_the_graphs
from rocm_passes.kernels.triton.convolution import conv3d, implicit_gemm_conv
from rocm_passes.kernels.triton.lowering import requires
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.time_axis import Tap, TimeAxis
from rocm_passes.target import Target

SUMS = torch.float32


def write(b: Writer, call: Conv3d) -> Any:
    c = Steps(b, replace(call, channels_last=True))
    front, x = c.front_and_chunk()
    o, channels, kt, kh, kw = b.value(call.weight).shape
    weight = b(aten.permute.default, c.kernel_as_is(), [3, 4, 0, 1, 2])
    weight = b(aten.reshape.default, weight, [kh * kw * o, channels, kt, 1, 1])
    made = ImplicitGemmConv(x=x, front=front, weight=c.laid_out(weight), **_parameters(call))
    sums = c.channels_behind(IMPLICIT_GEMM_CONV.write(b, made, "triton"))
    if call.extra_frames:
        frames = b.value(sums).shape[1] - call.extra_frames
        sums = b(aten.slice.Tensor, sums, 1, 0, frames)
    rows, columns = _axes(call, b.value(sums).shape[2:4], (kh, kw))
    total = None
    for row in rows.taps():
        for column in columns.taps():
            first = (row.index * kw + column.index) * o
            part = b(aten.slice.Tensor, sums, 4, first, first + o)
            part = _moved(b, _moved(b, part, 2, rows, row), 3, columns, column)
            total = part if total is None else b(aten.add.Tensor, total, part)
    if c.bias is not None:
        total = c.plus_bias(total, c.bias, behind=True)
    y = c.laid_out(c.channels_first(c.finished(total, behind=True)))
    return as_the_graphs(b, y, call.channels_last)


def _axes(call: Conv3d, sizes: Sequence[int], kernel: Sequence[int]) -> list[TimeAxis]:
    """Height and width, which taps see as those of time see frames."""
    return [
        TimeAxis(size, pad, pad, int(k), 1, dilation)
        for size, pad, k, dilation in zip(
            sizes, call.padding, kernel, call.dilation[1:], strict=True
        )
    ]


def _moved(b: Writer, part: Any, dim: int, axis: TimeAxis, tap: Tap) -> Any:
    """Rows (dim 2) or columns (dim 3) of [N, T, H, W, O] where the tap saw them, and zeros
    elsewhere.
    """
    if tap.count != axis.frames:
        part = b(aten.slice.Tensor, part, dim, tap.start, tap.start + tap.count)
    behind = axis.out - tap.first - tap.count
    if not (tap.first or behind):
        return part
    pads = [0] * (2 * (4 - dim)) + [tap.first, behind]
    return b(aten.constant_pad_nd.default, part, pads, 0.0)


def refuses(call: Conv3d, target: Target) -> str | None:
    compute = call.compute or call.x[0].dtype
    reason = conv3d.refuses_kind(call, compute)
    if reason is not None:
        return reason
    out, channels, _, kh, kw = call.weight.shape
    if kh * kw == 1:
        return "it has one spatial tap"
    if tuple(call.stride[1:]) != (1, 1):
        return f"spatial stride {tuple(call.stride[1:])}; 1 is needed"
    axes = _axes(call, call.x[0].shape[3:], (kh, kw))
    if not all(axis.taps() for axis in axes):
        return "no spatial tap sees a pixel that is not zero"
    taken, given = kh * kw * out * SUMS.itemsize, channels * compute.itemsize
    if taken > given:
        return f"its sums would take {taken} bytes a pixel, and its input takes {given}"
    columns = torch.empty(kh * kw * out, channels, call.weight.shape[2], 1, 1, dtype=compute,
                          device="meta")  # fmt: skip
    x = conv3d.meta_video(call, compute)
    made = ImplicitGemmConv(x=x, front=None, weight=columns, **_parameters(call))
    return implicit_gemm_conv.refuses(made, target)


def _parameters(call: Conv3d) -> dict[str, Any]:
    """Of the convolution over time alone."""
    return {
        **conv3d.parameters(call),
        "bias": None,
        "stride": (call.stride[0], 1, 1),
        "dilation": (call.dilation[0], 1, 1),
        "padding": (0, 0),
        "out_dtype": SUMS,
    }


NARROW = CONV3D.register(
    Lowering(
        "triton_narrow",
        requires=requires(implicit_gemm_conv.KERNEL),
        refuses=refuses,
        note=compute_note,
        write=write,
    ),
    before="direct",
)
