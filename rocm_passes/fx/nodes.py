"""Reading an ATen graph: values, casts, views, broadcasts. Nothing here changes a graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

aten = torch.ops.aten
prims = torch.ops.prims

VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.alias.default,
        aten.expand.default,
        aten.permute.default,
        aten.transpose.int,
    }
)
LOW_PRECISION = frozenset({torch.float16, torch.bfloat16})
FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32})
WIDE = frozenset({torch.float32, torch.float64})


def is_call(node: object, *targets: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def calls(graph: fx.Graph, *targets: Any) -> list[fx.Node]:
    """All calls of the targets, in graph order."""
    if len(targets) == 1:
        return list(graph.find_nodes(op="call_function", target=targets[0]))
    return sorted(
        (n for t in targets for n in graph.find_nodes(op="call_function", target=t)),
    )


def arg(node: fx.Node, index: int) -> Any:
    """A positional argument, of whatever kind."""
    return node.args[index]


def value(node: object) -> torch.Tensor | None:
    """The fake tensor that a node stands for, or None where it is no tensor."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def tensor(node: fx.Node) -> torch.Tensor:
    found = value(node)
    assert found is not None, f"{node} has no tensor value"
    return found


def shape(node: object) -> tuple[Any, ...]:
    found = value(node)
    return tuple(found.shape) if found is not None else ()


def dtype(node: object) -> torch.dtype | None:
    found = value(node)
    return found.dtype if found is not None else None


def dtype_name(dtype: torch.dtype) -> str:
    """Without the module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def same_size(a: Any, b: Any) -> bool:
    """Are two sizes, perhaps symbolic, known to be equal? Installs no guard."""
    return bool(statically_known_true(a == b))


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def known(condition: Any) -> bool:
    """Is the condition, perhaps symbolic, true for all sizes? Installs no guard."""
    return bool(statically_known_true(condition))


def number(arg: Any) -> int | torch.SymInt | None:
    """An argument that is a number: an int, or a symbolic one, which a node may stand for."""
    found = arg.meta.get("val") if isinstance(arg, fx.Node) else arg
    return found if isinstance(found, (int, torch.SymInt)) and not isinstance(found, bool) else None


def example_size(size: Any) -> int | None:
    """The size, where it is symbolic that of the example the graph was made from; None without one.

    For choices by speed alone: it holds for no other example. Installs no guard.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    return size.node.hint if size.node.has_hint() else None


def static_int(size: Any) -> int | None:
    """The size as an int, or None where it is symbolic and not known to be one number. Installs no
    guard.
    """
    if isinstance(size, torch.SymInt):
        found: int | None = size.node.maybe_as_int()
        return found
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def is_cast(node: object) -> TypeGuard[fx.Node]:
    """A change of dtype and of nothing else (aten._to_copy can also change device or layout)."""
    if is_call(node, prims.convert_element_type.default):
        return True
    if not is_call(node, aten._to_copy.default):
        return False
    source = value(node.args[0])
    result = value(node)
    return (
        source is not None
        and result is not None
        and source.device == result.device
        and node.kwargs.get("memory_format") is None
    )


def is_widening(node: object) -> TypeGuard[fx.Node]:
    """A cast that loses nothing: fp16/bf16 to fp32 or fp64, fp32 to fp64."""
    if not is_cast(node):
        return False
    source, result = dtype(node.args[0]), dtype(node)
    if source is None or result is None:
        return False
    return (source in LOW_PRECISION and result in WIDE) or (
        source is torch.float32 and result is torch.float64
    )


def argument(node: fx.Node, index: int = 0) -> fx.Node:
    """A positional argument that must be a node."""
    found = node.args[index]
    assert isinstance(found, fx.Node)
    return found


def through_widening(node: Any) -> Any:
    """The node before any lossless casts. Narrowing casts are never looked through: they change the
    value.
    """
    while is_widening(node):
        node = node.args[0]
    return node


def only_user(node: fx.Node) -> fx.Node | None:
    """The one user, where it reads the node once; None where there are several, or it reads it more
    often.
    """
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return user if reads(user, node) == 1 else None


def reads(user: fx.Node, node: fx.Node) -> int:
    """How often `node` stands among the user's arguments."""
    count = 0

    def see(each: fx.Node) -> fx.Node:
        nonlocal count
        count += each is node
        return each

    map_arg((user.args, user.kwargs), see)
    return count


def operands(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """Both orders of a commutative binary node's operands."""
    if len(node.args) >= 2:
        yield node.args[0], node.args[1]
        yield node.args[1], node.args[0]


def is_scalar(arg: object) -> bool:
    return isinstance(arg, (int, float)) and not isinstance(arg, bool)


def alpha_is_one(node: fx.Node) -> bool:
    """aten.add/sub multiply their second operand by alpha."""
    return len(node.args) < 3 and bool(node.kwargs.get("alpha", 1) == 1)


def get_item(node: fx.Node, index: int) -> fx.Node | None:
    """The user of a multi-output node that takes output `index`, where there is exactly one."""
    found = [u for u in node.users if is_call(u, operator.getitem) and u.args[1] == index]
    return found[0] if len(found) == 1 else None


def normalised_dim(dim: Any, rank: int) -> int | None:
    return dim % rank if isinstance(dim, int) and rank else None


def is_last_dim(dims: Any, rank: int) -> bool:
    listed = dims if isinstance(dims, Iterable) else [dims]
    return [normalised_dim(d, rank) for d in listed] == [rank - 1]


def is_vector_of(node: object, size: Any) -> bool:
    """A 1-D tensor of the given size, or one broadcast over leading dims of size 1 ([1, 1, D])."""
    dims = shape(node)
    return bool(dims) and same_size(dims[-1], size) and all(same_size(d, 1) for d in dims[:-1])


def slice_bounds(size: Any, args: tuple[Any, ...]) -> tuple[Any, Any, Any, int]:
    """(dim, start, end, step) of the arguments of aten.slice or slice_scatter behind the
    tensors.
    """
    dim = args[0] if args else 0
    begin = args[1] if len(args) > 1 and args[1] is not None else 0
    end = args[2] if len(args) > 2 and args[2] is not None else size
    step = args[3] if len(args) > 3 else 1
    if isinstance(size, int) and isinstance(begin, int) and isinstance(end, int):
        begin, end, _ = slice(begin, end).indices(size)
    return dim, begin, end, step


def joined_dim(node: object) -> int | None:
    """The dim along which a cat joins tensors of its own rank and dtype (cat skips empty 1-D ones,
    and promotes).
    """
    if not is_call(node, aten.cat.default):
        return None
    parts = node.args[0]
    rank = len(shape(node))
    dim = normalised_dim(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0), rank)
    if dim is None or not isinstance(parts, (list, tuple)):
        return None
    return dim if all(len(shape(p)) == rank and dtype(p) is dtype(node) for p in parts) else None
