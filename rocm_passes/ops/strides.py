"""Strides of dims of size 1: they address nothing, yet torch reads the memory layout off them."""

from __future__ import annotations

from torch import Tensor
from torch._prims_common import make_channels_last_strides_for, make_contiguous_strides_for


def settled(x: Tensor) -> Tensor:
    """x with the strides that a contiguous or channels-last tensor has at its dims of size 1, where
    it is either.

    Inductor hands over views with a stride of 0 there. `empty_like` keeps it on a device and not on
    fake tensors, and a convolution takes such a tensor for contiguous, so that its result has not
    the layout that was planned.
    """
    sizes, strides = tuple(x.shape), x.stride()
    if (
        not all(isinstance(s, int) for s in (*sizes, *strides))
        or 1 not in sizes
        or x.dim() not in (3, 4, 5)
    ):
        return x
    for wanted in (make_contiguous_strides_for(sizes), make_channels_last_strides_for(sizes)):
        if all(
            size == 1 or have == want
            for size, have, want in zip(sizes, strides, wanted, strict=True)
        ):
            return x if wanted == strides else x.as_strided(sizes, wanted, x.storage_offset())
    return x
