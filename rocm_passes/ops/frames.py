"""Frames in front of an operator's result, as a causal convolution reads them.

They are the last ones of the chunk before (`front`), or the result's own first frame, several times
(`repeat_first`). An operator that is told of them returns the whole video, [N, C, F + T, H, W], and
writes its own
T frames where they belong: the cat that would copy them is gone.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIME = 2
#: [N, C, T, H, W] to [N, T, H, W, C] and back, as a channels-last cat is spelled.
CHANNELS_BEHIND, CHANNELS_FIRST = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]


def has_front(front: Tensor | None, repeat_first: int) -> bool:
    return front is not None or repeat_first > 0


def empty_joined(front: Tensor | None, repeat_first: int, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the frames in front and x's, [N, C, F + T, H, W], contiguous or, where x is,
    channels-last.

    Memory like x's alone where there are none in front.
    """
    if not has_front(front, repeat_first):
        return torch.empty_like(x, dtype=dtype)
    shape = [*x.shape]
    shape[TIME] = shape[TIME] + (repeat_first if front is None else front.shape[TIME])
    last = (
        x.shape[1] != 1
        and x.stride(1) == 1
        and x.is_contiguous(memory_format=torch.channels_last_3d)
    )
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def joined_by_copies(front: Tensor | None, repeat_first: int, x: Tensor, y: Tensor) -> Tensor:
    """In plain torch: y, of x's shape, behind its frames, laid out as `empty_joined` has it."""
    joined = empty_joined(front, repeat_first, x, y.dtype)
    if has_front(front, repeat_first):
        first = y.narrow(TIME, 0, 1)
        y = torch.cat([first] * repeat_first + [y] if front is None else [front, y], TIME)
    return joined.copy_(y)
