"""A LayerNorm read off the graph: `native_layer_norm`, kept whole, or written by hand.

y = native_layer_norm(x.float(), [D], weight, bias, eps)[0]        (or of x itself)
y = y.to(T)                                                        (or not)

By hand, as the patterns below say, with a weight and a bias where they are not rounded in between:

d = x - mean(x)
y = d * rsqrt(mean(d^2) + eps) * weight + bias                     (or d / sqrt(var(x) + eps))
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound, Trace
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import add, bind, call, exactly, mean, number, reciprocal, rsqrt, sqrt
from rocm_passes.idioms.norms.rows import (
    advance,
    compute_dtype,
    dying,
    dying_casts,
    keeps_rows,
    last_dim,
    past_rounding,
    per_row,
    products,
)

X, EPS, HERE = bind("x"), number("eps"), exactly("here")


def _whole(found_as: object, found: Bound) -> str | None:
    """A variance over the rows that divides by their size, not by one less."""
    if found.node.kwargs.get("correction", 1) != 0:
        return "its variance is divided by one less than the size of a row"
    return last_dim(found_as, found)


variance = call(aten.var.correction)
item, both = call(operator.getitem), call(aten.var_mean.correction)

CENTRED = X - per_row(mean(X).where(last_dim) | item(both(X).where(_whole), 1))
VARIANCE = (
    variance(X).where(_whole)
    | item(both(X).where(_whole), 0)
    | mean(CENTRED**2 | CENTRED * CENTRED).where(last_dim)
)
ROOT = sqrt(VARIANCE + EPS) | (VARIANCE + EPS) ** 0.5
INVERSE = rsqrt(VARIANCE + EPS) | (VARIANCE + EPS) ** -0.5 | reciprocal(ROOT) | reciprocal(ROOT) * 1
NORM = CENTRED * per_row(INVERSE) | CENTRED / per_row(ROOT)

CANDIDATE = add(variance(X) | item(both(X), 0) | mean(CENTRED**2 | CENTRED * CENTRED))
WEIGHTED, BIASED = HERE * bind("weight"), HERE + bind("bias")


@dataclass
class Layer:
    """x, weight, bias: before widening casts. result: the last node; nodes: all of them.

    rounds_between: the graph's arithmetic is not that of one native LayerNorm.
    """

    anchor: fx.Node
    x: fx.Node
    eps: float
    result: fx.Node
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    compute_dtype: torch.dtype = torch.float32
    nodes: set[fx.Node] = field(default_factory=set)
    weight_offset: float = 0.0
    round_to: torch.dtype | None = None
    rounds_between: bool = False

    @property
    def out_dtype(self) -> torch.dtype:
        return n.tensor(self.result).dtype

    def eps_arguments(self) -> dict[str, Any]:
        return {"eps_tensor": None, "eps": self.eps}

    def parameters(self) -> dict[str, Any]:
        return {
            "size": n.shape(self.x)[-1],
            "eps": self.eps,
            "weight": n.dtype(self.weight) if self.weight is not None else None,
            "bias": n.dtype(self.bias) if self.bias is not None else None,
            "computes_in": self.compute_dtype,
            "x_dtype": n.dtype(self.x),
            "out_dtype": self.out_dtype,
        }


def calls(graph: fx.Graph) -> list[fx.Node]:
    return n.calls(graph, aten.native_layer_norm.default)


def read(node: fx.Node) -> Layer | str:
    """The LayerNorm of a `native_layer_norm` node, or why it can't be taken."""
    given, dims, weight, bias, eps = node.args
    assert isinstance(given, fx.Node)
    assert isinstance(dims, (list, tuple))
    if len(dims) != 1:
        return f"it normalises over {len(dims)} dimensions"
    if [u for u in node.users if u.args[1] != 0 and u.users]:
        return "its mean or rsqrt is used outside the norm, as for a backward pass"
    result = n.get_item(node, 0)
    if result is None:
        return "its result is not used"
    if not n.is_scalar(eps):
        return f"eps is {eps!r}"
    x = n.through_widening(given)
    norm = Layer(node, x, float(eps), result, nodes={node, *node.users})  # type: ignore[arg-type]
    norm.weight = n.through_widening(weight) if weight is not None else None
    norm.bias = n.through_widening(bias) if bias is not None else None
    norm.compute_dtype = torch.float64 if n.dtype(given) is torch.float64 else torch.float32
    norm.nodes |= dying_casts(given, norm.nodes)
    for table in (weight, bias):
        norm.nodes |= dying_casts(table, norm.nodes)
    past_rounding(norm)
    return norm


def read_by_hand(root: fx.Node) -> Layer | str | None:
    """A LayerNorm around a root. None: not a LayerNorm at all; a string: why it can't be taken."""
    candidate = CANDIDATE.match(root.args[0], Trace(keeps_rows))
    if candidate is None:
        return None
    trace = Trace(keeps_rows)
    for product in products(root):
        found = NORM.match(product, trace)
        if found is not None and root in found.nodes:
            return _read_by_hand(root, product, found)
    if n.only_user(root) is None:
        return "its rsqrt is used outside the norm, as for a backward pass"
    return f"not a LayerNorm: {trace.reason}"


def _read_by_hand(root: fx.Node, product: fx.Node, found: Bound) -> Layer | str:
    x, eps = found["x"], found["eps"]
    if not n.same_shape(n.shape(product), n.shape(x)):
        return f"the norm is {list(n.shape(product))}, and x is {list(n.shape(x))}"
    if not isinstance(eps, float):
        return "its eps is a tensor"
    norm = Layer(root, x, eps, product, nodes=set(found.nodes), rounds_between=True)
    norm.compute_dtype = compute_dtype(found.nodes, root)
    passed = set(found.passed)
    for name, pattern in (("weight", WEIGHTED), ("bias", BIASED)):
        step = n.only_user(norm.result)
        more = pattern.match(step, here=norm.result)
        if step is not None and more is not None and _is_table(more[name], norm):
            setattr(norm, name, more[name])
            advance(norm, step)
            passed |= more.passed
    past_rounding(norm)
    norm.nodes |= dying(passed, norm.nodes)
    return norm


def _is_table(node: fx.Node, norm: Layer) -> bool:
    """A vector of the row's size, as the operator takes it."""
    dims = n.shape(node)
    return (
        n.same_shape(dims, n.shape(norm.x)[-1:])
        and n.dtype(node) in n.FLOATING
        and len(n.shape(norm.x)) > 1
    )
