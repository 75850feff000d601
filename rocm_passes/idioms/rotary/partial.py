"""Rotations of a part of x: the channels and the tokens that the graph sets beside it unrotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary.dims import RESHAPES, cat_dim
from rocm_passes.idioms.rotary.rotation import Partial, Rotation


def extend(rotation: Rotation) -> None:
    """Take the channels, then the tokens, that the graph sets beside the rotated ones into the
    rotation.
    """
    if rotation.view is None and rotation.leak is None:
        _extend_channels(rotation)
        _extend_tokens(rotation)


def keeps_dims(rotation: Rotation) -> bool:
    """Does each dim of the result hold what the same dim of x does? Reshapes keep the order, others
    may not.
    """
    return n.same_shape(n.shape(rotation.result), n.shape(rotation.x)) and all(
        n.is_cast(v) or v.target in RESHAPES for v in rotation.tail
    )


@dataclass(frozen=True)
class _Rows:
    """A slice of step 1: rows start to start + size of a dim."""

    dim: int
    start: Any
    size: Any

    @property
    def end(self) -> Any:
        return self.start + self.size


def _rows_of(node: fx.Node) -> _Rows | None:
    """The rows that a slice takes of its input; None for another step."""
    sizes = n.shape(n.argument(node))
    dim = n.normalised_dim(node.args[1] if len(node.args) > 1 else 0, len(sizes))
    if dim is None or (len(node.args) > 4 and node.args[4] != 1):
        return None
    start = _start(node.args[2] if len(node.args) > 2 else None, sizes[dim])
    return None if start is None else _Rows(dim, start, n.shape(node)[dim])


def _start(given: Any, size: Any) -> Any:
    """The first row of a slice; symbolic where its argument or, counted from the end, the
    size is.
    """
    found = n.number(0 if given is None else given)
    if found is None or isinstance(found, bool):
        return None
    if not isinstance(found, int):
        return found if n.known(found >= 0) else None
    known = n.static_int(size)
    if known is None:
        return found if found >= 0 else size + found
    return slice(found, None).indices(known)[0]


def _same_rows(a: _Rows | None, b: _Rows) -> bool:
    return a is not None and a.dim == b.dim and n.same_shape((a.start, a.size), (b.start, b.size))


def _extend_channels(rotation: Rotation) -> None:
    """cat([rotated, x[..., R:]], -1) where x[..., :R] was rotated."""
    user, source = n.only_user(rotation.result), rotation.x
    if (
        user is None
        or not n.is_call(source, aten.slice.Tensor)
        or not n.is_call(user, aten.cat.default)
    ):
        return
    base, last, parts = n.argument(source), len(n.shape(source)) - 1, n.arg(user, 0)
    total = n.static_int(n.shape(base)[-1])
    if (
        total is None
        or len(parts) != 2
        or parts[0] is not rotation.result
        or not keeps_dims(rotation)
    ):
        return
    rest = parts[1]
    if (
        cat_dim(user) != last
        or not n.is_call(rest, aten.slice.Tensor)
        or n.argument(rest) is not base
    ):
        return
    width = rotation.width
    if not _same_rows(_rows_of(source), _Rows(last, 0, width)):
        return
    if _same_rows(_rows_of(rest), _Rows(last, width, total - width)) and (
        n.dtype(user) == n.dtype(rotation.result)
    ):
        _grow(rotation, base, user, {source, rest})


def _extend_tokens(rotation: Rotation) -> None:
    """cat([rotated, x[:, T:]], 1), or x with x[:, T:] replaced, where only those tokens are
    rotated.
    """
    source, user = rotation.x, n.only_user(rotation.result)
    if not n.is_call(source, aten.slice.Tensor) or user is None or not keeps_dims(rotation):
        return
    base, rows = n.argument(source), _rows_of(source)
    if rows is None or rows.dim >= len(rotation.lead) or not isinstance(rows.start, int):
        return
    if n.dtype(base) != n.dtype(rotation.result):
        return
    if n.is_call(user, aten.cat.default):
        found = _cat_of_slices(user, base, rotation.result, rows)
    else:
        found = _written_back(user, base, rotation.result, rows)
    if found is None:
        return
    result, extra = found
    rotation.partial = Partial(rows.dim, rows.start, rows.size)
    _grow(rotation, base, result, extra | {source})


def _cat_of_slices(
    cat: fx.Node, base: fx.Node, rotated: fx.Node, rows: _Rows
) -> tuple[fx.Node, set[fx.Node]] | None:
    """The cat and its slices, where together they are all rows of base, in order."""
    if cat_dim(cat) != rows.dim:
        return None
    at: Any = 0
    extra: set[fx.Node] = set()
    for part in n.arg(cat, 0):
        piece: _Rows | None = rows
        if part is not rotated:
            if not n.is_call(part, aten.slice.Tensor) or n.argument(part) is not base:
                return None
            piece = _rows_of(part)
            extra.add(part)
        if piece is None or piece.dim != rows.dim or not n.same_size(piece.start, at):
            return None
        at = piece.end
    return (cat, extra) if n.same_size(at, n.shape(base)[rows.dim]) else None


def _written_back(
    user: fx.Node, base: fx.Node, rotated: fx.Node, rows: _Rows
) -> tuple[fx.Node, set[fx.Node]] | None:
    """The slice_scatter of the rotated rows into base, perhaps behind an aten.copy of them."""
    extra: set[fx.Node] = set()
    written = rotated
    if n.is_call(user, aten.copy.default) and user.args[1] is rotated:
        after = n.only_user(user)
        if after is None or not n.same_shape(n.shape(user), n.shape(rotated)):
            return None
        if n.dtype(user) != n.dtype(rotated):
            return None
        extra.add(user)
        written, user = user, after
    if not n.is_call(user, aten.slice_scatter.default) or user.args[:2] != (base, written):
        return None
    dim, begin, _, step = n.slice_bounds(n.shape(base)[rows.dim], user.args[2:])
    if n.normalised_dim(dim, len(n.shape(base))) != rows.dim or step != 1:
        return None
    # As many rows as `rotated` has, or the graph would not run.
    start = _start(begin, n.shape(base)[rows.dim])
    return (user, extra) if start is not None and n.same_size(start, rows.start) else None


def _grow(rotation: Rotation, base: fx.Node, result: fx.Node, extra: set[fx.Node]) -> None:
    rotation.x = base
    rotation.lead = n.shape(base)[:-1]
    rotation.core, rotation.tail = result, []
    inside = rotation.nodes | extra | {result}
    rotation.nodes = {m for m in inside if m is result or all(u in inside for u in m.users)}
