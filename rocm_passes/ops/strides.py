"""Strides of dims of size 1: they address nothing, yet torch reads the memory layout off them."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.ops.conv3d.write import channels_last_strides


def settled(x: Tensor) -> Tensor:
    """x with the strides that a contiguous or channels-last tensor has at its dims of size 1, where it is either.

    Inductor hands over views with a stride of 0 there. `empty_like` keeps it on a device and not on fake tensors,
    and a convolution takes such a tensor for contiguous, so that its result has not the layout that was planned.
    """
    sizes, strides = tuple(x.shape), x.stride()
    if not all(isinstance(s, int) for s in (*sizes, *strides)) or 1 not in sizes or x.dim() < 3:
        return x
    for wanted in (_contiguous(sizes), channels_last_strides(sizes)):
        if all(size == 1 or have == want for size, have, want in zip(sizes, strides, wanted, strict=True)):
            return x if tuple(wanted) == strides else x.as_strided(sizes, wanted, x.storage_offset())
    return x


def _contiguous(sizes: tuple[int, ...]) -> list[int]:
    strides = [1] * len(sizes)
    for dim in reversed(range(len(sizes) - 1)):
        strides[dim] = strides[dim + 1] * max(sizes[dim + 1], 1)
    return strides
