"""Complex tables in real numbers: what computes a complex [...] written again for its parts [...,
2].

Inductor generates no code for complex numbers. A table that a graph builds from complex inputs
(indexing, cat, broadcast, torch.polar) becomes the same computation on real tensors; a complex
graph input is read once, by an operator of ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.reuse import reuse
from rocm_passes.ops.as_real import AS_REAL

_REAL_OF = {
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
    torch.complex32: torch.float16,
}


def real_of(b: Any, z: Any) -> Any:
    """The real tensor [..., 2] of a complex one: a node where z is a node, else a tensor."""
    if not isinstance(z, fx.Node):
        return torch.view_as_real(z.resolve_conj())
    rule = RULES.get(z.target) if z.op == "call_function" else None
    found = rule(b, z) if rule is not None else None
    return reuse(b, AS_REAL.overload, z, "reference") if found is None else found


def _rank(z: fx.Node) -> int:
    return len(n.shape(z))


def _pair(b: Any, re: Any, im: Any) -> Any:
    axis = len(n.shape(re))
    parts = [reuse(b, aten.unsqueeze.default, part, axis) for part in (re, im)]
    return reuse(b, aten.cat.default, parts, axis)


def _view_as_complex(b: Any, z: fx.Node) -> Any:
    return n.argument(z)


def _complex(b: Any, z: fx.Node) -> Any:
    re, im = (_broadcast(b, part, z) for part in z.args)
    return _pair(b, re, im)


def _broadcast(b: Any, part: Any, z: fx.Node) -> Any:
    return (
        part
        if n.same_shape(n.shape(part), n.shape(z))
        else reuse(b, aten.expand.default, part, list(n.shape(z)))
    )


def _polar(b: Any, z: fx.Node) -> Any:
    modulus, angle = n.argument(z, 0), n.argument(z, 1)
    re, im = reuse(b, aten.cos.default, angle), reuse(b, aten.sin.default, angle)
    if not _is_one(modulus):
        re, im = reuse(b, aten.mul.Tensor, modulus, re), reuse(b, aten.mul.Tensor, modulus, im)
    return _pair(b, _broadcast(b, re, z), _broadcast(b, im, z))


def _is_one(node: fx.Node) -> bool:
    return n.is_call(node, aten.full.default, aten.full_like.default) and bool(node.args[1] == 1)


def _dim(z: fx.Node, index: int, rank: int, default: int = 0) -> int:
    found = z.args[index] if len(z.args) > index else default
    assert isinstance(found, int)
    return found % rank


def _with_dim(index: int, extra: int = 0) -> Callable[[Any, fx.Node], Any]:
    """An operator with one dim argument, which must not be counted from the end."""

    def rule(b: Any, z: fx.Node) -> Any:
        source = n.argument(z)
        args = list(z.args[1:])
        if len(args) < index:
            args += [0] * (index - len(args))
        args[index - 1] = _dim(z, index, _rank(source) + extra)
        return reuse(b, z.target, real_of(b, source), *args)

    return rule


def _sized(b: Any, z: fx.Node) -> Any:
    """A reshape or expand to the node's own shape."""
    target = aten.reshape.default if z.target is not aten.expand.default else aten.expand.default
    return reuse(b, target, real_of(b, n.argument(z)), [*n.shape(z), 2])


def _permute(b: Any, z: fx.Node) -> Any:
    rank = _rank(z)
    order = [d % rank for d in n.arg(z, 1)]
    return reuse(b, aten.permute.default, real_of(b, n.argument(z)), [*order, rank])


def _transpose(b: Any, z: fx.Node) -> Any:
    rank = _rank(z)
    dims = [n.arg(z, 1) % rank, n.arg(z, 2) % rank]
    return reuse(b, aten.transpose.int, real_of(b, n.argument(z)), *dims)


def _cat(b: Any, z: fx.Node) -> Any:
    if any(n.dtype(part) is not n.dtype(z) for part in n.arg(z, 0)):
        # One is real, or of another precision.
        return None
    parts = [real_of(b, part) for part in n.arg(z, 0)]
    return reuse(b, aten.cat.default, parts, _dim(z, 1, _rank(z)))


def _scatter(b: Any, z: fx.Node) -> Any:
    if n.dtype(z.args[1]) is not n.dtype(z):
        return None
    base, source = real_of(b, n.argument(z, 0)), real_of(b, n.argument(z, 1))
    return reuse(b, z.target, base, source, _dim(z, 2, _rank(z)), *z.args[3:])


def _index(b: Any, z: fx.Node) -> Any:
    return reuse(b, z.target, real_of(b, n.argument(z)), *z.args[1:])


def _gather(b: Any, z: fx.Node) -> Any:
    rank, index = _rank(z), n.arg(z, 2)
    both = reuse(b, aten.unsqueeze.default, index, rank)
    both = reuse(b, aten.expand.default, both, [*n.shape(index), 2])
    return reuse(b, z.target, real_of(b, n.argument(z)), _dim(z, 1, rank), both)


def _repeat(b: Any, z: fx.Node) -> Any:
    return reuse(b, z.target, real_of(b, n.argument(z)), [*n.arg(z, 1), 1])


def _pad(b: Any, z: fx.Node) -> Any:
    value = z.args[2] if len(z.args) > 2 else z.kwargs.get("value", 0)
    if value != 0:
        return None
    return reuse(b, z.target, real_of(b, n.argument(z)), [0, 0, *n.arg(z, 1)], 0.0)


def _copy(b: Any, z: fx.Node) -> Any:
    """Of the destination only shape and dtype are left."""
    source = n.argument(z, 1)
    if n.dtype(source) is not n.dtype(z):
        return None
    parts, sizes = real_of(b, source), [*n.shape(z), 2]
    return (
        parts
        if n.same_shape(n.shape(parts), sizes)
        else reuse(b, aten.expand.default, parts, sizes)
    )


def _same(b: Any, z: fx.Node) -> Any:
    return real_of(b, n.argument(z))


def _convert(b: Any, z: fx.Node) -> Any:
    source, result = n.dtype(z.args[0]), n.dtype(z)
    if not n.is_cast(z) or source not in _REAL_OF or result not in _REAL_OF:
        return None
    to = _REAL_OF[result]
    return reuse(b, torch.ops.prims.convert_element_type.default, real_of(b, n.argument(z)), to)


def _full(b: Any, z: fx.Node) -> Any:
    number, found = complex(n.arg(z, 1)), n.tensor(z)

    def full(sizes: list[Any], value: float) -> Any:
        dtype = _REAL_OF[found.dtype]
        return b(aten.full.default, sizes, value, dtype=dtype, device=found.device)

    if number.imag == number.real:
        return full([*n.shape(z), 2], number.real)
    return _pair(b, *(full([*n.shape(z)], value) for value in (number.real, number.imag)))


def _getitem(b: Any, z: fx.Node) -> Any:
    split = n.argument(z)
    if not n.is_call(split, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int):
        return None
    source = n.argument(split)
    at = 1 if split.target is aten.unbind.int else 2
    args = [*split.args[1:at], _dim(split, at, _rank(source))]
    pieces = reuse(b, split.target, real_of(b, source), *args)
    return reuse(b, operator.getitem, pieces, n.arg(z, 1))


def _conj(b: Any, z: fx.Node) -> Any:
    parts = real_of(b, n.argument(z))
    axis = _rank(z)
    re, im = (reuse(b, aten.select.int, parts, axis, i) for i in (0, 1))
    return _pair(b, re, reuse(b, aten.neg.default, im))


RULES: dict[Any, Callable[[Any, fx.Node], Any]] = {
    aten.view_as_complex.default: _view_as_complex,
    aten.complex.default: _complex,
    aten.polar.default: _polar,
    aten.unsqueeze.default: _with_dim(1, extra=1),
    aten.select.int: _with_dim(1),
    aten.slice.Tensor: _with_dim(1),
    aten.index_select.default: _with_dim(1),
    aten.reshape.default: _sized,
    aten.view.default: _sized,
    aten._unsafe_view.default: _sized,
    aten.squeeze.dim: _sized,
    aten.squeeze.dims: _sized,
    aten.expand.default: _sized,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.cat.default: _cat,
    aten.select_scatter.default: _scatter,
    aten.slice_scatter.default: _scatter,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    aten.repeat.default: _repeat,
    aten.constant_pad_nd.default: _pad,
    aten.copy.default: _copy,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten._conj.default: _conj,
    torch.ops.prims.convert_element_type.default: _convert,
    aten._to_copy.default: _convert,
    aten.full.default: _full,
    operator.getitem: _getitem,
}
