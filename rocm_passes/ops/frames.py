"""Frames in front of an operator's result: a causal convolution reads the last ones of the chunk before.

An operator that is given them returns the whole video, [N, C, F + T, H, W], and writes its own T frames where
they belong: the cat that would copy them is gone.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIME = 2


def empty_joined(front: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for front's frames and x's, [N, C, F + T, H, W], contiguous or, where x is, channels-last."""
    shape = [*x.shape]
    shape[TIME] = shape[TIME] + front.shape[TIME]
    last = x.shape[1] != 1 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def split(joined: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """The first frames of a joined video, and the others."""
    return joined.narrow(TIME, 0, frames), joined.narrow(TIME, frames, joined.shape[TIME] - frames)


def joined_by_copies(front: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """In plain torch: y behind front's frames, laid out as `empty_joined` has it for x."""
    if front is None:
        return y
    return empty_joined(front, x, y.dtype).copy_(torch.cat([front, y], TIME))


def joined_by_kernel(front: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The joined video with front's frames in it, and the view of it in which a kernel writes the others."""
    from ..kernels.triton.frames import copy_frames

    joined = empty_joined(front, x, dtype)
    first, rest = split(joined, front.shape[TIME])
    copy_frames(front, first)
    return joined, rest
