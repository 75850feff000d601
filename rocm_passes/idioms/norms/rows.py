"""What the readers of norms over rows share: statistics of a row, and what stands before and behind
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import Pattern

#: Views that keep the elements in their order, whatever their arguments.
_RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.alias.default,
    }
)
#: How many nodes may stand between the root of a statistic and the product with the rows.
_STEPS = 8


def keeps_rows(node: fx.Node) -> fx.Node | None:
    """What stands before a lossless cast, or before a view behind which row i is row i still."""
    if n.is_widening(node) or (node.op == "call_function" and node.target in _RESHAPES):
        return n.argument(node)
    if n.is_call(node, aten.permute.default, aten.expand.default):
        source = n.argument(node)
        dims, result = n.shape(source), n.shape(node)
        if n.is_call(node, aten.permute.default):
            moved = [d for d in n.arg(node, 1) if not n.same_size(dims[d], 1)]
            return (
                source
                if [d % len(dims) for d in moved] == sorted(d % len(dims) for d in moved)
                else None
            )
        # One value a row, repeated along it.
        repeats = len(dims) == len(result) > 0 and n.same_size(dims[-1], 1)
        return source if repeats and n.same_shape(dims[:-1], result[:-1]) else None
    return None


def last_dim(_: object, found: Bound) -> str | None:
    """Is it a reduction of x's rows, over all of their elements and nothing else?"""
    dims, given = n.arg(found.node, 1), n.shape(found.node.args[0])
    if not n.is_last_dim(dims, len(given)):
        return f"it normalises over dims {dims}, not over the last one"
    size = n.shape(found["x"])[-1]
    if not n.same_size(given[-1], size):
        return f"the statistic is of {given[-1]} elements, and x has rows of {size}"
    return None


def per_row(statistic: Pattern) -> Pattern:
    """The statistic, shaped so that each row of x meets its own value."""

    def check(node: Any, found: Bound) -> str | None:
        rows, dims = n.shape(found["x"]), n.shape(node)
        padded = (1,) * (len(rows) - len(dims)) + dims
        if n.same_shape(padded, (*rows[:-1], 1)) or n.same_shape(padded, rows):
            return None
        return f"the statistic is {list(dims)}, which is not one value for each row of {list(rows)}"

    return statistic.where(check)


def roots(graph: fx.Graph) -> list[fx.Node]:
    """The roots that may be those of a norm's statistic, in graph order."""
    powers = n.calls(graph, aten.pow.Tensor_Scalar)
    found = [m for m in powers if m.args[1] in (0.5, -0.5)]
    return sorted([*n.calls(graph, aten.rsqrt.default), *n.calls(graph, aten.sqrt.default), *found])


def products(root: fx.Node) -> Iterator[fx.Node]:
    """The products and quotients on the only way from a root."""
    node: fx.Node | None = root
    for _ in range(_STEPS):
        node = n.only_user(node) if node is not None else None
        if n.is_call(node, aten.mul.Tensor, aten.div.Tensor):
            yield node


def rounds_inside(nodes: Iterable[fx.Node]) -> bool:
    """Does one of the nodes round to 16 bits? (Lossless casts and views of what was rounded count
    with it.)
    """
    return any(n.dtype(node) in n.LOW_PRECISION for node in nodes)


def compute_dtype(nodes: Iterable[fx.Node], root: fx.Node) -> torch.dtype:
    """The dtype of the arithmetic: the root's, or float64 where anything is computed in it."""
    found = {n.dtype(node) for node in nodes}
    return torch.float64 if torch.float64 in found else n.tensor(root).dtype


def dying(passed: Iterable[fx.Node], inside: Iterable[fx.Node]) -> set[fx.Node]:
    """Those of `passed` that nothing outside `inside` reads, directly or through each other."""
    rest, gone, known = set(passed), set[fx.Node](), set(inside)
    while more := {m for m in rest if m.users and all(u in known for u in m.users)}:
        gone |= more
        known |= more
        rest -= more
    return gone


def dying_casts(start: object, inside: set[fx.Node]) -> set[fx.Node]:
    """The widening casts from `start` upwards that nothing outside `inside` reads: they die with
    it.
    """
    found: set[fx.Node] = set()
    node = start
    while n.is_widening(node) and all(user in inside or user in found for user in node.users):
        found.add(node)
        node = node.args[0]
    return found


def sole_cast(node: fx.Node) -> fx.Node | None:
    """The cast that is the only use of a value; a value read twice is the norm's result as
    it is.
    """
    user = n.only_user(node)
    return user if user is not None and n.is_cast(user) else None


def narrowing(node: fx.Node) -> fx.Node | None:
    """The cast that alone reads a value and rounds it to a dtype that our kernels write. A widening
    belongs to what follows; a cast to integers or to 8 bits is no rounding of the norm's.
    """
    cast = sole_cast(node)
    return (
        cast
        if cast is not None and not n.is_widening(cast) and n.dtype(cast) in n.FLOATING
        else None
    )


class Walked(Protocol):
    """A norm while it is read: what it has taken so far, and where it stands."""

    nodes: set[fx.Node]
    result: fx.Node
    rounds_between: bool


def advance(norm: Walked, node: fx.Node) -> None:
    norm.nodes.add(node)
    norm.result = node


def past_rounding(norm: Walked) -> None:
    """Past the cast that alone rounds the result. From 16 bits to other 16 bits the graph rounds
    twice, and the kernel once.
    """
    cast = narrowing(norm.result)
    if cast is not None:
        norm.rounds_between |= n.dtype(norm.result) in n.LOW_PRECISION
        advance(norm, cast)


def has_shape_of(node: object, like: fx.Node) -> bool:
    return isinstance(node, fx.Node) and n.same_shape(n.shape(node), n.shape(like))


def broadcasts(node: object, like: fx.Node) -> bool:
    """A floating tensor that broadcasts to the rows."""
    dims, full = n.shape(node), n.shape(like)
    if n.dtype(node) not in n.FLOATING or not 0 < len(dims) <= len(full):
        return False
    tail = full[len(full) - len(dims) :]
    return all(n.same_size(d, 1) or n.same_size(d, t) for d, t in zip(dims, tail, strict=True))
