"""Tensors that are read by index: [N, C, *other], of which each pixel of x takes the one that a
table names.

Nearest upsampling is such a table. What it would copy to x's size is read where it is, mostly from
a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rocm_passes.kernels.triton.common import TRITON_TYPE
from rocm_passes.kernels.triton.dense import DenseView, counts_pixels


def given_by_index(
    multiplier: Tensor | None, addend: Tensor | None, x: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Multiplier and addend of other pixels than x's, in strides that both share and that count
    pixels.
    """
    both = {n: t for n, t in (("multiplier", multiplier), ("addend", addend)) if t is not None}
    for name, t in both.items():
        if not t.is_floating_point():
            raise TypeError(f"{name} is {t.dtype}; a floating dtype is needed")
        if t.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, and x, by pixel_index, {tuple(x.shape)}"
            )
    if len({t.shape for t in both.values()}) > 1:
        raise ValueError("multiplier and addend, by pixel_index, are not of one shape")
    found = {n: t if t.dtype in TRITON_TYPE else t.float() for n, t in both.items()}
    strides = {t.stride() for t in found.values()}
    if len(strides) > 1 or not all(counts_pixels(t) for t in found.values()):
        found = {n: t.contiguous() for n, t in found.items()}
    return found.get("multiplier"), found.get("addend")


def in_memory_order(pixel_index: Tensor, view: DenseView) -> Tensor:
    """pixel_index in the order in which x's pixels lie in memory."""
    x = view.tensor
    if pixel_index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"pixel_index is {pixel_index.dtype}; int32 or int64 is needed")
    if pixel_index.shape != x.shape[2:]:
        raise ValueError(f"pixel_index has shape {tuple(pixel_index.shape)} and x {tuple(x.shape)}")
    between = view.channels if view.inner == 1 else 1
    strides = [stride // between for stride in x.stride()[2:]]
    same = zip(pixel_index.shape, pixel_index.stride(), strides, strict=True)
    if all(size == 1 or have == want for size, have, want in same):
        return pixel_index
    return torch.empty_strided(
        pixel_index.shape, strides, dtype=pixel_index.dtype, device=x.device
    ).copy_(pixel_index)
