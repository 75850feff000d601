"""Where views take the elements of one dim: sizes alone can't tell dims of equal size apart.

The last dim of a tensor, of N elements, is followed through reshapes, permutes and the like. In the
view, a dim may hold a run of it: element i of the dim is element (i * step + ...) of the N.

    [B, S, N]  reshape  [B, S, H, D]  transpose  [B, H, S, D]
           N            H: step D, D: step 1     H: step D, D: step 1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten

RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
#: What takes the sizes of its result.
SHAPED = (*RESHAPES, aten.expand.default)


@dataclass(frozen=True)
class Dim:
    """A dim of a view. step: of the elements of the followed dim along it; None where it holds none
    of them.
    """

    size: Any
    step: int | None = None


def followed(shape: Sequence[Any], views: Iterable[fx.Node]) -> list[Dim] | None:
    """The dims of the last view of a tensor of this shape, whose last dim is followed.

    None where a view mixes the followed dim with others, or is of a kind that is not known.
    """
    size = n.static_int(shape[-1])
    if size is None or size < 2:
        return None
    dims = [*(Dim(s) for s in shape[:-1]), Dim(size, 1)]
    for view in views:
        moved = _through(view, dims)
        if moved is None or not n.same_shape([d.size for d in moved], n.shape(view)):
            return None
        dims = moved
    return dims


def cat_dim(cat: fx.Node) -> int | None:
    dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    return n.normalised_dim(dim, len(n.shape(cat)))


def as_moves(views: Iterable[fx.Node]) -> tuple[tuple[Any, tuple[Any, ...]], ...]:
    """(operator, further arguments) of each view, without nodes of the graph among them."""
    return tuple(
        (v.target, (list(n.shape(v)),) if v.target in SHAPED else v.args[1:]) for v in views
    )


def _through(view: fx.Node, dims: list[Dim]) -> list[Dim] | None:
    sizes, rank, target = n.shape(view), len(dims), view.target
    if target in RESHAPES:
        return _reshaped(dims, sizes)
    if target is aten.permute.default:
        return [dims[d] for d in n.arg(view, 1)]
    if target is aten.transpose.int:
        a, b = n.arg(view, 1) % rank, n.arg(view, 2) % rank
        order = {a: b, b: a}
        return [dims[order.get(d, d)] for d in range(rank)]
    if target is aten.unsqueeze.default:
        at = n.arg(view, 1) % (rank + 1)
        return [*dims[:at], Dim(1), *dims[at:]]
    if target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        return _squeezed(dims, n.arg(view, 1) if len(view.args) > 1 else range(rank))
    if target is aten.expand.default:
        return _expanded(dims, sizes)
    return dims if target is aten.alias.default else None


def _squeezed(dims: list[Dim], axes: int | Iterable[int]) -> list[Dim]:
    gone = {a % len(dims) for a in ([axes] if isinstance(axes, int) else axes)}
    return [d for i, d in enumerate(dims) if i not in gone or not n.same_size(d.size, 1)]


def _expanded(dims: list[Dim], sizes: Sequence[Any]) -> list[Dim] | None:
    dims = [*(Dim(1) for _ in range(len(sizes) - len(dims))), *dims]
    if any(
        d.step is not None and not n.same_size(d.size, s) for d, s in zip(dims, sizes, strict=True)
    ):
        return None
    return [d if d.step is not None else Dim(s) for d, s in zip(dims, sizes, strict=True)]


def _reshaped(dims: list[Dim], sizes: Sequence[Any]) -> list[Dim] | None:
    """The dims cut anew, from the last one on: a reshape keeps the order of all elements."""
    left = [d for d in dims if not n.same_size(d.size, 1)]
    made: list[Dim] = []
    for size in reversed(sizes):
        if n.same_size(size, 1):
            made.append(Dim(1))
        elif any(d.step is not None for d in left):
            dim = _cut(left, size)
            if dim is None:
                return None
            made.append(dim)
        else:
            # What is left holds nothing that is followed, however it is cut.
            made.append(Dim(size))
    return None if any(d.step is not None for d in left) else made[::-1]


def _cut(left: list[Dim], size: Any) -> Dim | None:
    """Take a dim of this size off the end of `left`; None where it would mix the followed dim with
    others.
    """
    dim = left.pop()
    while not n.same_size(dim.size, size):
        if _divides(size, dim.size):
            step = None if dim.step is None else dim.step * size
            left.append(Dim(dim.size // size, step))
            return Dim(size, dim.step)
        outer = left.pop() if left else None
        if outer is None or not _lies_outside(outer, dim):
            return None
        need = size // dim.size if _divides(dim.size, size) else None
        if need is not None and outer.size != need and _divides(need, outer.size):
            left.append(Dim(outer.size // need, None if outer.step is None else outer.step * need))
            outer = Dim(need, outer.step)
        dim = Dim(outer.size * dim.size, dim.step)
    return dim


def _lies_outside(outer: Dim, dim: Dim) -> bool:
    """Do the two make one dim: neither holds any of the followed one, or they hold one run
    of it?
    """
    if outer.step is None or dim.step is None:
        return outer.step is dim.step
    return bool(outer.step == dim.step * dim.size)


def _divides(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a > 0 and bool(b % a == 0)
