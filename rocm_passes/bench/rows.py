"""A decoder split by rows: each rank has rows of every frame, and a row of either neighbour where a
convolution reads beyond its own.

As parallel VAE decodes do it, in functional collectives that a compiler sees. Norms over channels
and pointwise code need no neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn

ROWS = 3


def mine(x: Tensor) -> Tensor:
    """This rank's rows of a whole tensor [N, C, T, H, W]."""
    return x.tensor_split(dist.get_world_size(), ROWS)[dist.get_rank()].contiguous()


def with_neighbours(x: Tensor, rows: int) -> Tensor:
    """The rows of this rank with so many of either neighbour, zeros beyond the first and last."""
    rank, size = dist.get_rank(), dist.get_world_size()
    height = x.shape[ROWS]
    edges = torch.cat([x.narrow(ROWS, 0, rows), x.narrow(ROWS, height - rows, rows)], ROWS)
    every = funcol.all_gather_tensor(edges.contiguous(), 0, dist.group.WORLD).chunk(size)
    zeros = torch.zeros_like(every[0].narrow(ROWS, 0, rows))
    above = every[rank - 1].narrow(ROWS, rows, rows) if rank > 0 else zeros
    below = every[rank + 1].narrow(ROWS, 0, rows) if rank < size - 1 else zeros
    return torch.cat([above, x, below], ROWS)


def split_rows(model: nn.Module) -> None:
    """Give each causal convolution of diffusers' Wan VAE its neighbours' rows, not zeros."""
    for module in model.modules():
        padding: Any = getattr(module, "_padding", None)
        if isinstance(module, nn.Conv3d) and padding is not None and padding[2]:
            _split(module, padding)


def _split(convolution: nn.Conv3d, padding: tuple[int, ...]) -> None:
    left, right, rows, _, front, back = padding
    convolution._padding = (left, right, 0, 0, front, back)  # type: ignore[assignment]
    forward = convolution.forward

    def with_rows(x: Tensor, *args: Any) -> Tensor:
        return forward(with_neighbours(x, rows), *args)

    convolution.forward = with_rows  # type: ignore[method-assign,assignment]
