"""Reading what only moves pixels: gathers (nearest upsampling is one), slices and cats over time
and space, casts.

    x = cat([cast(index(cast(z[:, :, :1]), [None, None, t, h, w])), ...], 2)

is made of the pixels of z, each in one or several places. Whatever is computed pixel by pixel from
x, a 1x1x1 convolution say, can be computed from z's pixels and moved afterwards: the same numbers
in the same places.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.ops.upsampled_conv import Move, Moved, Piece

#: The dims before time and space: samples and channels.
LEADING = 2


GATHERS = (aten._unsafe_index.Tensor, aten.index.Tensor)


def source_pixels(moved: Moved) -> int:
    """How many pixels the pieces are made of, one that several are made of counted once."""
    return sum(pixels(source) for source in dict.fromkeys(p.source for p in moved.pieces))


def repeats(moved: Moved) -> bool:
    """Is there a gather, which alone can put a pixel in several places?"""
    return any(m.target in GATHERS for p in moved.pieces for m in p.moves)


def read(x: fx.Node) -> Moved:
    """x [N, C, *spatial] as pixels moved; made of as few as possible, where sizes are numbers."""
    whole, sliced = _read(x, through_slices=True), _read(x, through_slices=False)
    if not all(sizes_are_known(p.source) for p in (*whole.pieces, *sliced.pieces)):
        return whole
    return min(whole, sliced, key=source_pixels)


def pixels(node: fx.Node) -> int:
    return math.prod(n.shape(node)[LEADING:])


def sizes_are_known(node: fx.Node) -> bool:
    return all(isinstance(s, int) for s in n.shape(node))


def _read(x: fx.Node, through_slices: bool) -> Moved:
    outer = _piece(x, False, gathers=False)
    cat = outer.source
    dim = joined_pixel_dim(cat)
    if dim is None:
        return Moved((_piece(x, through_slices),), None)
    pieces = [_piece(part, through_slices) for part in cat.args[0]]
    return Moved(
        tuple(
            Piece(p.source, _needed(n.dtype(p.source), p.casts + outer.casts), p.moves)
            for p in pieces
        ),
        dim,
    )


def _piece(x: fx.Node, through_slices: bool, gathers: bool = True) -> Piece:
    casts: list[torch.dtype] = []
    moves: list[Move] = []
    while True:
        if n.is_cast(x):
            casts.insert(0, n.tensor(x).dtype)
        elif (gathers and gathered_dims(x)) or (through_slices and _is_slice(x)):
            moves.insert(0, Move(x.target, tuple(x.args[1:]), dict(x.kwargs)))
        elif not n.is_call(x, aten.clone.default):
            break
        x = n.argument(x)
    return Piece(x, _needed(n.dtype(x), tuple(casts)), tuple(moves))


def gathered_dims(node: fx.Node) -> list[int]:
    """The dims that it gathers over, by whole numbers: neighbouring dims of time and space, in
    place; else none.
    """
    if not n.is_call(node, *GATHERS) or len(n.shape(node)) != len(n.shape(n.argument(node))):
        return []
    indices: Any = node.args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if not dims or dims != list(range(dims[0], dims[-1] + 1)) or dims[0] < LEADING:
        return []
    return dims if all(n.dtype(indices[dim]) in (torch.int32, torch.int64) for dim in dims) else []


def _is_slice(node: fx.Node) -> bool:
    if not n.is_call(node, aten.slice.Tensor):
        return False
    dim = n.normalised_dim(node.args[1] if len(node.args) > 1 else 0, len(n.shape(node)))
    return dim is not None and dim >= LEADING


def joined_pixel_dim(node: fx.Node) -> int | None:
    """The dim of time or space along which a cat joins tensors of its own dtype and rank."""
    dim = n.joined_dim(node)
    return None if dim is None or dim < LEADING else dim


def _needed(dtype: torch.dtype | None, casts: tuple[torch.dtype, ...]) -> tuple[torch.dtype, ...]:
    """The casts without those that change nothing, to a wider dtype and back."""
    kept = [dtype]
    for to in casts:
        if len(kept) > 1 and kept[-2] is to and _loses_nothing(to, kept[-1]):
            kept.pop()
        elif to is not kept[-1]:
            kept.append(to)
    return tuple(k for k in kept[1:] if k is not None)


def _loses_nothing(narrow: torch.dtype, wide: torch.dtype | None) -> bool:
    if wide is None or not (narrow.is_floating_point and wide.is_floating_point):
        return False
    # torch has no promotion of 8-bit floats.
    return narrow is wide or (
        min(narrow.itemsize, wide.itemsize) > 1 and torch.promote_types(narrow, wide) is wide
    )
