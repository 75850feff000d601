"""Image and video tensors as they lie in memory: [outer, C, inner], whatever the order of their
dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rocm_passes.kernels.triton.common import TRITON_TYPE


@dataclass(frozen=True)
class DenseView:
    """`tensor` is dense, and element (o, c, i) lies at ((o * channels) + c) * inner + i.

    `batch_outermost`: the batch (dim 0) is the slowest dim, so that each sample is one run of
    memory.
    """

    tensor: Tensor
    outer: int
    channels: int
    inner: int
    batch_outermost: bool


def dense_view(x: Tensor) -> DenseView:
    """`x` ([N, C, *spatial]) as [outer, C, inner]; copied, in its own dim order, where it
    has gaps.
    """
    if not _is_dense(x):
        x = torch.empty_like(x).copy_(x)
    inner = x.stride(1) if x.shape[1] > 1 else 1
    if x.shape[1] == 1:
        return DenseView(x, x.numel(), 1, 1, _batch_outermost(x))
    outer = x.numel() // max(x.shape[1] * inner, 1)
    return DenseView(x, outer, x.shape[1], inner, _batch_outermost(x))


def pixel_distance(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """How far apart neighbouring pixels of such dims lie, in their order; None where that is not
    one distance.
    """
    distance = step = None
    for size, stride in reversed(list(zip(sizes, strides, strict=True))):
        if size > 1:
            if step is not None and stride != step:
                return None
            distance = stride if distance is None else distance
            step = stride * size
    return 1 if distance is None else distance


def counts_pixels(t: Tensor) -> bool:
    """Do the pixels of t [N, C, *spatial] lie at equal distances, in the order of its dims?"""
    return pixel_distance(t.shape[2:], t.stride()[2:]) is not None


def pixel_strides(t: Tensor) -> tuple[int, int, int]:
    """(sample, pixel, channel) strides of a tensor that counts pixels."""
    distance = pixel_distance(t.shape[2:], t.stride()[2:])
    assert distance is not None
    return t.stride(0), distance, t.stride(1)


def takes_pixels_of(x: Tensor, out: Tensor) -> Tensor:
    """x, copied where its pixels are not in an order that both can be counted in.

    Raises ValueError on an `out` of another shape, or whose pixels do not lie at equal distances.
    """
    if out.shape != x.shape:
        raise ValueError(
            f"out has shape {tuple(out.shape)} and x {tuple(x.shape)}; one shape is needed"
        )
    if not counts_pixels(out):
        raise ValueError(f"out has strides {out.stride()}; its pixels must lie at equal distances")
    return x if counts_pixels(x) else x.contiguous()


def sample_extent(t: Tensor) -> int:
    """How many elements of memory a sample of t [N, C, *spatial] spans, gaps included."""
    return 1 + sum(
        (size - 1) * stride for size, stride in zip(t.shape[1:], t.stride()[1:], strict=True)
    )


def per_channel(
    name: str, t: Tensor | None, channels: int, one_for_all: bool = False
) -> Tensor | None:
    """`t` as [channels], contiguous, in a dtype that kernels read; one_for_all: it may be a single
    element.
    """
    if t is None:
        return None
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; a floating dtype is needed")
    if t.numel() != channels and not (one_for_all and t.numel() == 1):
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}; {channels} elements, one a channel, are needed"
        )
    t = t if t.dtype in TRITON_TYPE else t.float()
    return t.reshape(-1).expand(channels).contiguous()


def _is_dense(x: Tensor) -> bool:
    """The elements of x fill a run of memory with no gap and no overlap."""
    expected = 1
    for size, stride in sorted(zip(x.shape, x.stride(), strict=True), key=lambda dim: dim[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _batch_outermost(x: Tensor) -> bool:
    return x.shape[0] == 1 or x.stride(0) == x.numel() // x.shape[0]
