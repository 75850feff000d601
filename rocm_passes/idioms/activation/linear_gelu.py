"""A linear layer with a bias and GELU behind it, to one product with an epilogue.

Before                                          After
    p = addmm(bias, x, weight)                      p = _addmm_activation(bias, x, weight,
    y = gelu(reshape(p), approximate="tanh")            use_gelu=True)
                                                    y = reshape(p)

When it pays: where a measurement says so. Inductor computes GELU in a kernel of its own, which
reads and writes the product once.

Refused: the product used elsewhere; factors on the bias or the product. On a GPU the epilogue
computes GELU's tanh form only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.ops import linear_gelu as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss
from rocm_passes.target import Target
from rocm_passes.tuning import tuning

NAME = "linear_gelu"
RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for gelu in n.calls(graph, aten.gelu.default):
        between = [gelu]
        node = n.argument(gelu)
        while n.is_call(node, *RESHAPES):
            between.append(node)
            node = n.argument(node)
        if n.is_call(node, aten.addmm.default):
            yield _found(gelu, node, between)


def _found(gelu: fx.Node, product: fx.Node, between: list[fx.Node]) -> Found:
    approximate = gelu.kwargs.get("approximate", "none")
    parameters = {"approximate": approximate}
    reason = refusal(product, between)
    if reason is not None:
        return Miss(gelu, reason, {}, parameters)
    added, x, weight = (n.argument(product, i) for i in range(3))
    arguments: Any = (x, weight, added, tuple(n.shape(gelu)), approximate)
    nodes = frozenset({product, *between})
    return Match(gelu, nodes, (gelu,), op.LinearGelu(*arguments), {}, parameters)


def refusal(product: fx.Node, between: list[fx.Node]) -> str | None:
    """Why the two cannot be computed at once, or None where they can."""
    inner = [product, *between[1:]]
    if any(len(node.users) != 1 for node in inner):
        return "the linear layer's result is used elsewhere too"
    if len(n.shape(product.args[0])) != 1:
        return f"its bias has shape {tuple(n.shape(product.args[0]))}"
    if any(product.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return "its bias or its product has a factor"
    if n.dtype(product) not in n.FLOATING:
        return f"it is {n.dtype(product)}"
    return None


def measured(
    able: Sequence[Lowering[Any]], call: op.LinearGelu, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where there is a choice and it is enough work to time."""
    if len(able) < 2 or not call.has_numbers() or call.flops() < bounds.WORTH_MEASURING.value:
        return None
    return tuning.pick(call.key(), able, call, target, options)


IDIOM = Idiom(NAME, find, op.LINEAR_GELU.lowerings, preserves=("gelu",), measured=measured)
