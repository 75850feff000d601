"""Reading nearest upsampling off a graph: which element of which tensor stands where.

`F.interpolate(mode="nearest")` comes down to gathers by computed indices, between casts that
cancel, joined and cut in several ways. What they do together is read as a number for each place
along each axis: the spelling does not matter, and nothing is taken for upsampling by its looks.

    t = 0 1 1 2 2               every frame but the first twice
    h = w = 0 0 1 1 ...         rows and columns twice
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.node import map_arg

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.idioms.convolution.pixels import LEADING, gathered_dims, joined_pixel_dim

#: What indices are computed with, from nothing but numbers.
ARITHMETIC = frozenset(
    {
        prims.iota.default,
        prims.convert_element_type.default,
        aten._to_copy.default,
        aten.arange.default,
        aten.arange.start,
        aten.arange.start_step,
        aten.full.default,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.floor.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        aten.unsqueeze.default,
    }
)
LARGEST_FACTOR = 16
_LONGEST = 2**16


@dataclass(frozen=True)
class Upsampled:
    """`source`, each element repeats[i] times along spatial dim i, without the first `skipped` of
    dim 2.

    nodes: what lies between the source and the tensor that was read.
    """

    source: fx.Node
    repeats: tuple[int, ...]
    skipped: int
    nodes: frozenset[fx.Node]


def read(x: fx.Node) -> Upsampled:
    """x ([N, C, *spatial]) as the upsampling that it is; by factors of 1, of x itself, where it is
    none.
    """
    plain = Upsampled(x, (1,) * (len(n.shape(x)) - LEADING), 0, frozenset())
    found = _gathered(x)
    if found is None or found.hidden or n.dtype(found.source) is not n.dtype(x):
        return plain
    factors = [
        _factor(places, size, may_skip=axis == 0 and len(found.places) == 3)
        for axis, (places, size) in enumerate(
            zip(found.places, n.shape(found.source)[2:], strict=True)
        )
    ]
    known = [f for f in factors if f is not None]
    if len(known) < len(factors) or all(repeat == 1 for repeat, _ in known):
        return plain
    return Upsampled(found.source, tuple(r for r, _ in known), known[0][1], frozenset(found.nodes))


def _factor(places: Sequence[int], size: int, may_skip: bool) -> tuple[int, int] | None:
    """(repeat, skipped) such that the places are each of `size` elements `repeat` times, less the
    first skipped.
    """
    for repeat in range(1, LARGEST_FACTOR + 1):
        skipped = size * repeat - len(places)
        fits = 0 <= skipped < repeat and (may_skip or not skipped)
        if fits and all(place == (i + skipped) // repeat for i, place in enumerate(places)):
            return repeat, skipped
    return None


@dataclass(frozen=True)
class _Gathered:
    """Element i along the source's spatial axis a is the source's element places[a][i].

    hidden: it is a single frame, seen as an image: the first axis is not among its dims. nodes:
    those in between.
    """

    source: fx.Node
    places: tuple[tuple[int, ...], ...]
    hidden: bool = False
    nodes: tuple[fx.Node, ...] = ()

    def along(self, dim: int, taken: Sequence[int]) -> _Gathered | None:
        """Of this, the elements `taken` along the dim, in that order."""
        axis = dim - LEADING + self.hidden
        if axis < self.hidden or axis >= len(self.places):
            return None
        if not all(0 <= i < len(self.places[axis]) for i in taken):
            return None
        chosen = tuple(self.places[axis][i] for i in taken)
        return replace(self, places=(*self.places[:axis], chosen, *self.places[axis + 1 :]))


def _gathered(x: fx.Node) -> _Gathered | None:
    """x as elements of a tensor further up; None where its sizes are symbolic. Never past what is
    computed, nor past a tensor that something else reads as well: that one is made in any case.
    """
    sizes = n.shape(x)[LEADING:]
    if len(sizes) not in (2, 3) or not all(isinstance(s, int) for s in sizes):
        return None
    if n.only_user(x) is not None:
        found = _step(x)
        if found is not None:
            return replace(found, nodes=(*found.nodes, x))
    return _Gathered(x, tuple(tuple(range(s)) for s in sizes))


def _step(x: fx.Node) -> _Gathered | None:
    """What x is of its argument, read on; None where it is no copy of it."""
    if gathered_dims(x):
        return _gather(x)
    if x.target in _STEPS:
        return _STEPS[x.target](x)
    if n.is_widening(x):
        return _gathered(n.argument(x))
    return _cast(x) if n.is_cast(x) else None


def _cast(x: fx.Node) -> _Gathered | None:
    """One that undoes a widening cast; any other narrowing changes values."""
    found = _gathered(n.argument(x))
    return found if found and n.dtype(found.source) is n.dtype(x) else None


def _shows_the_frame(x: fx.Node) -> _Gathered | None:
    found = _gathered(n.argument(x))
    if found is None or not found.hidden or not _is_time(x.args[1], 5):
        return None
    return replace(found, hidden=False)


def _hides_the_frame(x: fx.Node) -> _Gathered | None:
    found = _gathered(n.argument(x))
    if found is None or found.hidden or len(found.places) != 3:
        return None
    one_frame = len(n.shape(x)) == 4 and _is_time(x.args[1], 5)
    return replace(found, hidden=True) if one_frame else None


def _is_time(dims: Any, rank: int) -> bool:
    listed = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    return [n.normalised_dim(d, rank) for d in listed] == [LEADING]


def _gather(x: fx.Node) -> _Gathered | None:
    """By one vector of numbers for each of some neighbouring dims."""
    found = _gathered(n.argument(x))
    indices: Any = x.args[1]
    dims = gathered_dims(x)
    for k, dim in enumerate(dims):
        vector = _vector(indices[dim], behind=len(dims) - 1 - k)
        if found is None or vector is None:
            return None
        found = found.along(dim, vector)
    return found


def _vector(index: fx.Node, behind: int) -> list[int] | None:
    """The numbers of an index of shape [1, ..., size, 1, ...] with `behind` dims of size 1 at its
    end.
    """
    shape = n.shape(index)
    if not all(isinstance(s, int) for s in shape):
        return None
    at = len(shape) - 1 - behind
    if at < 0 or math.prod(shape) != shape[at] or shape[at] > _LONGEST:
        return None
    with unset_fake_temporarily():
        values = _computed(index)
        return None if values is None else [int(v) for v in values.flatten().tolist()]


def _computed(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that is computed from numbers alone, on the CPU; None for any other."""
    if node.target not in ARITHMETIC:
        return None
    values: dict[fx.Node, torch.Tensor] = {}
    for needed in node.all_input_nodes:
        value = _computed(needed)
        if value is None:
            return None
        values[needed] = value
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda a: values[a])
    here = {"device": torch.device("cpu")} if "device" in kwargs else {}
    return node.target(*args, **{**kwargs, **here})  # type: ignore[no-any-return]


def _cat(x: fx.Node) -> _Gathered | None:
    """Parts of one tensor that differ in their frames only."""
    parts: Any = x.args[0]
    if joined_pixel_dim(x) != LEADING:
        return None
    read = [_gathered(part) for part in parts]
    first = read[0]
    frames: list[int] = []
    nodes: list[fx.Node] = []
    for found in read:
        if first is None or found is None or found.source is not first.source or found.hidden:
            return None
        if len(found.places) != 3 or found.places[1:] != first.places[1:]:
            return None
        frames += found.places[0]
        nodes += found.nodes
    assert first is not None
    return replace(first, places=(tuple(frames), *first.places[1:]), nodes=tuple(nodes))


def _slice(x: fx.Node) -> _Gathered | None:
    source = n.argument(x)
    given, *bounds = n.slice_bounds(None, x.args[1:])
    dim = n.normalised_dim(given, len(n.shape(source)))
    if (
        x.kwargs
        or dim is None
        or dim < LEADING
        or not all(b is None or isinstance(b, int) for b in bounds)
    ):
        return None
    return _cut(source, dim, slice(*bounds))


def _part_of_split(x: fx.Node) -> _Gathered | None:
    split, index = n.argument(x), x.args[1]
    if not n.is_call(split, aten.split_with_sizes.default) or not isinstance(index, int):
        return None
    source, sizes = n.argument(split), n.arg(split, 1)
    dim = n.normalised_dim(split.args[2] if len(split.args) > 2 else 0, len(n.shape(source)))
    if dim is None or dim < LEADING or not all(isinstance(s, int) for s in sizes):
        return None
    start = sum(sizes[:index])
    found = _cut(source, dim, slice(start, start + sizes[index]))
    return found and replace(found, nodes=(*found.nodes, split))


def _cut(source: fx.Node, dim: int, piece: slice) -> _Gathered | None:
    found = _gathered(source)
    size = n.shape(source)[dim]
    return (
        found and found.along(dim, range(*piece.indices(size))) if isinstance(size, int) else None
    )


#: What reads on through a call of each operator.
_STEPS: dict[Any, Callable[[fx.Node], _Gathered | None]] = {
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    operator.getitem: _part_of_split,
    aten.unsqueeze.default: _shows_the_frame,
    aten.squeeze.dim: _hides_the_frame,
    aten.squeeze.dims: _hides_the_frame,
    aten.clone.default: lambda x: _gathered(n.argument(x)),
}
