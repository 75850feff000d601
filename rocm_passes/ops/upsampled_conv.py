"""A 1x1 or 1x1x1 convolution of moved pixels, and what such pixels are.

    x = cat([cast(index(cast(z[:, :, :1]), [None, None, t, h, w])), ...], 2)

is made of the pixels of z, each in one or several places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rocm_passes.ops.operator import Call, Computation


class Move(NamedTuple):
    """`target(x, *args, **kwargs)`: a call that takes pixels of x and puts them elsewhere."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Piece(NamedTuple):
    """`source` [N, C, *spatial], cast to each of `casts` in turn, its pixels moved by each of
    `moves`.
    """

    source: Any
    casts: tuple[torch.dtype, ...]
    moves: tuple[Move, ...]


class Moved(NamedTuple):
    """`pieces` end to end along `dim`; one piece, and None, where nothing is joined."""

    pieces: tuple[Piece, ...]
    dim: int | None


def write_moves(b: Any, moves: Iterable[Move], x: Any) -> Any:
    """The moves applied to another tensor of the source's size, with a Builder."""
    for target, args, kwargs in moves:
        x = b(target, x, *args, **kwargs)
    return x


@dataclass(frozen=True)
class UpsampledConv(Call):
    """moved: the convolution's input, as pixels moved. shape: of that input, [N, C, *spatial].

    weight: [O, C/groups, 1, 1] or [O, C/groups, 1, 1, 1]. bias: [O] or None.
    """

    moved: Moved
    weight: Tensor
    bias: Tensor | None
    groups: int
    shape: Sequence[int]

    def repetition(self) -> float:
        """How many of the input's pixels there are for one that they are made of."""
        sources = {id(piece.source): piece.source for piece in self.moved.pieces}
        made_of = sum(math.prod(s.shape[2:]) for s in sources.values())
        return float(math.prod(self.shape[2:]) / made_of)


UPSAMPLED_CONV = Computation("upsampled_conv", UpsampledConv)
