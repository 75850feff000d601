"""act(gate) * x: the product inside a SwiGLU (silu) or GEGLU (gelu) feed-forward.

Before                          After
    a = silu(gate)                  y = rocm_passes.gated_activation(gate, x, "silu", "triton")
    y = mul(a, x)

When it pays: nobody has measured that it does. Inductor fuses it as well.

Refused: operands of different shapes or dtypes; the activation used elsewhere; fp64.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import bind, call, mul
from rocm_passes.ops import gated_activation as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

NAME = "gated_activation"

GATE, X = bind("gate"), bind("x")
ACTIVATED = call(aten.silu.default)(GATE) | call(aten.gelu.default)(GATE)
PRODUCT = mul(ACTIVATED.named("activated"), X)


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for product in n.calls(graph, aten.mul.Tensor):
        found = PRODUCT.match(product)
        if found is not None:
            yield _found(product, found)


def _found(product: fx.Node, found: Bound) -> Found:
    gate, x, activated = found["gate"], found["x"], found["activated"]
    act = _name(activated)
    reason = refusal(product, activated, gate, x)
    if reason is not None:
        return Miss(activated, reason, {}, {"act": act})
    site = op.GatedActivation(gate, x, act)
    return Match(activated, frozenset({activated, product}), (product,), site, {}, {"act": act})


def _name(activated: fx.Node) -> str:
    if activated.target is aten.silu.default:
        return "silu"
    return "gelu" if activated.kwargs.get("approximate", "none") == "none" else "gelu_tanh"


def refusal(product: fx.Node, activated: fx.Node, gate: fx.Node, x: fx.Node) -> str | None:
    """Why it cannot be computed by one operator, or None where it can."""
    if n.only_user(activated) is not product:
        return "the activation is used elsewhere too"
    if not n.dtype(gate) is n.dtype(x) is n.dtype(product) or n.dtype(x) not in n.FLOATING:
        return f"gate is {n.dtype(gate)}, x {n.dtype(x)} and the product {n.dtype(product)}"
    if not n.same_shape(n.shape(gate), n.shape(x)):
        return f"gate has shape {tuple(n.shape(gate))} and x {tuple(n.shape(x))}"
    return None


IDIOM = Idiom(
    NAME, find, op.GATED_ACTIVATION.lowerings, op.GATED_ACTIVATION, preserves=("silu", "gelu")
)
