"""A LayerNorm read off the graph: `native_layer_norm`, kept whole, with the casts round it.

y = native_layer_norm(x.float(), [D], weight, bias, eps)[0]        (or of x itself)
y = y.to(T)                                                        (or not)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms.rms import dying_casts


@dataclass
class Layer:
    """x, weight, bias: before widening casts. result: the last node; nodes: all of them."""

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
    cast = n.only_user(result)
    if cast is not None and n.is_cast(cast):
        norm.nodes.add(cast)
        norm.result = cast
    return norm
