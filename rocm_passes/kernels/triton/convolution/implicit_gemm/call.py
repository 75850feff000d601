"""A call of the convolution: its parameters, the sizes that follow, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import INT32_MAX, TRITON_TYPE
from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import Tile

Fill = Literal["zeros", "replicate"]
Ends = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """How the convolution reads x, as (time, height, width).

    The input is front's frames and then x's. Each pixel of both and each frame of x is repeated
    `upsample` times (nearest), and the first `skipped` repeated frames are left out. `padding` is
    (before, behind) along each dim: zeros, or the outermost frames ("replicate" in `time`) and
    pixels (in `space`). out_dtype: of the result; x's, or float32 for sums that are not rounded.
    """

    stride: tuple[int, int, int] = (1, 1, 1)
    dilation: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[Ends, Ends, Ends] = ((0, 0), (0, 0), (0, 0))
    time: Fill = "zeros"
    space: Fill = "zeros"
    upsample: tuple[int, int, int] = (1, 1, 1)
    skipped: int = 0
    groups: int = 1
    out_dtype: torch.dtype | None = None

    @staticmethod
    def of_idiom(
        zeros: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        upsample: Sequence[int] = (1, 1),
    ) -> Conv:
        """From a call of the conv3d idiom: zero frames before and behind, zeros (height, width),
        how often each pixel is repeated (down, across).
        """
        t, h, w = stride
        dt, dh, dw = dilation
        ends = ((zeros[0], zeros[1]), (padding[0], padding[0]), (padding[1], padding[1]))
        return Conv((t, h, w), (dt, dh, dw), ends, upsample=(1, upsample[0], upsample[1]))

    def seen(self, x: Tensor, front: Tensor | None) -> tuple[int, int, int]:
        """Sizes of the input without its padding."""
        frames, height, width = (s * r for s, r in zip(x.shape[2:], self.upsample, strict=True))
        return frames - self.skipped + (0 if front is None else front.shape[2]), height, width

    def out(self, x: Tensor, kernel: Sequence[int], front: Tensor | None) -> tuple[int, int, int]:
        """Sizes of the result; not positive where there is none."""
        t, h, w = (
            (size + sum(ends) - d * (k - 1) - 1) // s + 1
            for size, ends, d, k, s in zip(
                self.seen(x, front), self.padding, self.dilation, kernel, self.stride, strict=True
            )
        )
        return t, h, w


def refusal(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv: Conv | None = None,
    front: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
) -> str | None:
    """Why `conv3d` does not take the call, or None. Fake tensors will do: no value is read."""
    conv = conv or Conv()
    tensors = {"x": x, "weight": weight, "bias": bias, "front": front, "residual": residual}
    present = {name: t for name, t in tensors.items() if t is not None}
    return (
        _refuses_tensors(present)
        or _refuses_parameters(conv, front)
        or _refuses_shapes(x, weight, bias, front)
        or _refuses_sizes(conv, x, weight, front, residual, tile)
    )


def _refuses_tensors(present: dict[str, Tensor]) -> str | None:
    x = present["x"]
    if x.dtype not in TRITON_TYPE:
        return f"x is {x.dtype}; float32, float16 or bfloat16 is needed"
    for name, t in present.items():
        if name in ("weight", "front") and t.dtype is not x.dtype:
            return f"{name} is {t.dtype} and x {x.dtype}; one dtype is needed"
        if t.dtype not in TRITON_TYPE:
            return f"{name} is {t.dtype}; float32, float16 or bfloat16 is needed"
        if t.device != x.device:
            return f"{name} lies on {t.device} and x on {x.device}"
        if any(not isinstance(size, int) for size in (*t.shape, *t.stride())):
            return f"{name} has symbolic sizes"
    return None


def _refuses_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, front: Tensor | None
) -> str | None:
    if x.dim() != 5 or weight.dim() != 5:
        return f"x has {x.dim()} dims and the weight {weight.dim()}; 5 of each are needed"
    out, channels = weight.shape[:2]
    if channels != x.shape[1]:
        return f"the weight takes {channels} channels and x has {x.shape[1]}"
    if 0 in weight.shape:
        return f"the weight has shape {tuple(weight.shape)}: it is empty"
    if bias is not None and tuple(bias.shape) != (out,):
        return f"the bias has shape {tuple(bias.shape)}; ({out},) is needed"
    if front is not None:
        expected = (*x.shape[:2], *x.shape[3:])
        if front.dim() != 5 or (*front.shape[:2], *front.shape[3:]) != expected:
            shapes = f"front has shape {tuple(front.shape)} and x {tuple(x.shape)}"
            return f"{shapes}; they differ in more than frames"
    return None


def _refuses_parameters(conv: Conv, front: Tensor | None) -> str | None:
    if conv.groups != 1:
        return f"groups={conv.groups}; 1 is needed"
    for name in ("stride", "dilation", "upsample"):
        if min(getattr(conv, name)) < 1:
            return f"{name}={getattr(conv, name)}; at least 1 is needed"
    if min(min(ends) for ends in conv.padding) < 0:
        return f"padding={conv.padding}: it crops"
    for name in ("time", "space"):
        if getattr(conv, name) not in ("zeros", "replicate"):
            return f"{name}={getattr(conv, name)!r}: padding is of zeros or replicates"
    if not 0 <= conv.skipped < conv.upsample[0]:
        return f"skipped={conv.skipped} of frames repeated {conv.upsample[0]} times"
    if front is not None and conv.upsample[0] != 1:
        return "frames in front of an upsampling in time"
    return None


def _refuses_sizes(
    conv: Conv,
    x: Tensor,
    weight: Tensor,
    front: Tensor | None,
    residual: Tensor | None,
    tile: Tile | None,
) -> str | None:
    size = conv.out(x, weight.shape[2:], front)
    seen = conv.seen(x, front)
    if min(size) < 1 or min(seen) < 1:
        return f"an input of sizes {seen} gives a result of sizes {size}: it is empty"
    shape = (x.shape[0], weight.shape[0], *size)
    if residual is not None and tuple(residual.shape) != shape:
        return f"the residual has shape {tuple(residual.shape)}; {shape} is needed"
    if size[1] * size[2] > INT32_MAX - 4096:
        return f"a frame of the result has {size[1] * size[2]} pixels: more than 32 bits count"
    rows, columns = (tile.rows, tile.columns + tile.more_columns) if tile else (16, 16)
    programs = (
        x.shape[0] * size[0] * triton.cdiv(size[1] * size[2], rows) * triton.cdiv(shape[1], columns)
    )
    if programs > INT32_MAX:
        return f"{programs} programs: more than a grid has"
    return None


def frame_extent(
    conv: Conv, x: Tensor, kernel: Sequence[int], out: Sequence[int], rows: int
) -> int:
    """A bound on the offsets in one frame of x, with its padding and a ragged last block."""
    steps = [
        (size + extra) * stride + d * k + before
        for size, extra, stride, d, k, (before, _) in zip(
            out[1:],
            (triton.cdiv(rows, max(out[2], 1)), 0),
            conv.stride[1:],
            conv.dilation[1:],
            kernel[1:],
            conv.padding[1:],
            strict=True,
        )
    ]
    return (
        math.prod((steps[0], abs(x.stride(3))))
        + math.prod((steps[1], abs(x.stride(4))))
        + x.shape[1]
    )


def max_offset(
    conv: Conv, x: Tensor, weight: Tensor, residual: Tensor | None, out: Sequence[int], tile: Tile
) -> int:
    """A bound on a program's offsets within a frame of x, of the result and of the residual, and
    within the weight.
    """
    columns = weight.shape[0] + tile.columns + tile.more_columns
    offsets = [
        frame_extent(conv, x, weight.shape[2:], out, tile.rows),
        (out[1] * out[2] + tile.rows) * weight.shape[0],
        columns * math.prod(weight.shape[1:]),
    ]
    if residual is not None:
        sizes = (columns, out[1] + triton.cdiv(tile.rows, out[2]), out[2])
        strides = (residual.stride(1), *residual.stride()[3:])
        offsets.append(sum(s * abs(d) for s, d in zip(sizes, strides, strict=True)))
    return max(offsets)


def same_layout(a: Tensor, b: Tensor) -> bool:
    """One stride along height and width each, wherever there is more than one row or column."""
    return all(a.shape[d] <= 1 or a.stride(d) == b.stride(d) for d in (3, 4))


def channels_innermost(x: Tensor) -> Any:
    """x, copied to channels-last where its channels are not neighbours in memory."""
    if x.shape[1] <= 1 or x.stride(1) == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)
