"""Attention that the graph spells out in float32, which is how torch decomposes it where it has no
kernel: `_scaled_dot_product_attention_math`.

    scores  = (q * sqrt(scale)) @ (k * sqrt(scale))^T + bias
    weights = softmax(scores), 0 in a row that is -inf throughout
    y       = cast(weights @ v)

Anchored on the test for such rows, which no other softmax has. Attention that a model spells out by
itself Inductor turns into a kernel before (`fuse_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound, Trace
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.fx.patterns import Pattern, add, bind, call, div, exactly, mul, number, sub, total
from rocm_passes.idioms.attention.operands import RESHAPES, Read, key_heads, refusal
from rocm_passes.rewrite.rewriter import escapes

reshape = call(*RESHAPES)
expand = call(aten.expand.default)
permute = call(aten.permute.default, aten.transpose.int)
bmm = call(aten.bmm.default)
clone = call(aten.clone.default)
amax = call(aten.amax.default)
exp = call(aten.exp.default)
logical_not = call(aten.logical_not.default)
full = call(aten.full.default)


def _last_two_dims_swapped(_: object, found: Bound) -> str | None:
    dims = found.node.args[1:]
    given = list(dims[0]) if len(dims) == 1 else sorted(d % 4 for d in dims)
    return None if given in ([0, 1, 3, 2], [2, 3]) else f"k's dims are permuted by {given}"


def _last_dim_kept(_: object, found: Bound) -> str | None:
    dim, keep = found.node.args[1:3] if len(found.node.args) > 2 else (None, False)
    last = n.is_last_dim(dim, len(n.shape(found.node.args[0])))
    return None if last and keep else "the softmax is over another dim than the last"


def folded(inner: Pattern) -> Pattern:
    """[B, H, S, D] as bmm takes it, [B * H, S, D]. What an expand broadcasts is copied."""
    return reshape(expand(inner) | clone(expand(inner))) | reshape(inner)


Q, K, V = bind("q"), bind("k"), bind("v")
PRODUCT = reshape(
    bmm(
        folded(mul(Q, number("q_scale"))),
        folded(mul(permute(K).where(_last_two_dims_swapped), number("k_scale"))),
    )
)
SCORES = add(PRODUCT, bind("bias")) | PRODUCT

HERE = exactly("scores")
EXP = exp(sub(HERE, amax(HERE).where(_last_dim_kept)))
SOFTMAX = div(EXP.named("exp"), total(exactly("exp")).where(_last_dim_kept))
#: Which rows are -inf throughout: no score of theirs is another number.
HIDDEN = logical_not(
    call(aten.any.dim)(logical_not(call(aten.eq.Scalar)(HERE, -math.inf))).where(_last_dim_kept)
)
RESULT = reshape(bmm(folded(exactly("weights")), folded(V)))

#: The mask of is_causal: the place of a key less that of a query is 0 or less.
PLACES = call(prims.iota.default)()
UP_TO = call(aten.le.Scalar)(
    sub(call(aten.unsqueeze.default)(PLACES, -2), call(aten.unsqueeze.default)(PLACES, -1)), 0
)
SEEN = call(aten.logical_and.default)(UP_TO, full().named("all")) | UP_TO
CAUSAL = call(aten.where.self)(SEEN, full().named("seen"), full().named("hidden"))


def candidates(graph: fx.Graph) -> Iterator[fx.Node]:
    """The tests for rows that are -inf throughout."""
    for node in n.calls(graph, aten.any.dim):
        inner = n.arg(node, 0)
        compared = n.arg(inner, 0) if n.is_call(inner, aten.logical_not.default) else None
        if n.is_call(compared, aten.eq.Scalar) and compared.args[1] == -math.inf:
            yield node


def read(anchor: fx.Node) -> Read | str:
    """The attention around a candidate, or why it is none that can be computed at once."""
    scores = n.argument(n.argument(n.argument(anchor)))
    weights = _weights(anchor)
    if weights is None:
        return "rows without a key are not set to 0"
    trace = Trace()
    hidden = HIDDEN.match(weights.args[0], trace, scores=scores)
    softmax = SOFTMAX.match(weights.args[2], trace, scores=scores)
    product = SCORES.match(scores, trace)
    if hidden is None or softmax is None or product is None or _filled(weights.args[1]) != 0:
        return f"it is no softmax of q k^T as torch spells it: {trace.reason or 'rows differ'}"
    if len(weights.users) > 1:
        return "its weights are read elsewhere too, as a backward pass does"
    last = _last(weights)
    result = RESULT.match(last, trace, weights=weights) if last is not None else None
    if last is None or result is None:
        return "its weights are not multiplied by v: they may be dropped at random"
    return _joined(weights, last, hidden, softmax, product, result)


def _joined(weights: fx.Node, last: fx.Node, *parts: Bound) -> Read | str:
    hidden, softmax, product, result = parts
    q, bias = product["q"], product.get("bias")
    # Heads are repeated after the cast to float32.
    k, v = map(n.through_widening, key_heads(product["k"], result["v"]))
    reason = refusal(q, k, v, bias)
    if reason is not None:
        return reason
    if not _multiplies(product, k) or not _multiplies(result, v):
        return "its products are not those of whole heads"
    scales = [product["q_scale"], product["k_scale"]]
    if not all(isinstance(s, float) for s in scales):
        return "its scale is not known at compile time"
    out = _rounded(last, q)
    if out is None:
        return f"its result is not rounded to {n.dtype(q)}, which q, k and v have"
    core = _behind(product, {weights, last, out, *hidden.nodes, *softmax.nodes, *result.nodes})
    outside = escapes(frozenset(core), (out,))
    if outside is not None:
        return f"{outside.name} inside it is read elsewhere too"
    causal = bias is not None and _is_causal(bias)
    return Read(
        out,
        frozenset(core),
        q,
        k,
        v,
        None if causal else bias,
        scales[0] * scales[1],
        causal,
        "math",
    )


def _multiplies(found: Bound, right: fx.Node) -> bool:
    """Is the right factor of the product k or v [B, H, S, D] with heads and batches in one dim?"""
    product = next(node for node in found.nodes if node.target is aten.bmm.default)
    _, inner, outer = n.shape(product.args[1])
    size = tuple(n.shape(right)[2:])
    return n.same_shape((inner, outer), size) or n.same_shape((outer, inner), size)


def _behind(product: Bound, nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes from the first product on. What prepares q, k and v may be shared: it is left."""
    first = next(node for node in product.nodes if node.target is aten.bmm.default)
    nodes |= product.nodes
    found = {first}
    for node in sorted(nodes):
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _weights(anchor: fx.Node) -> fx.Node | None:
    """where(hidden, 0, softmax)."""
    hidden = n.only_user(anchor)
    found = n.only_user(hidden) if n.is_call(hidden, aten.logical_not.default) else None
    return found if n.is_call(found, aten.where.self) and found.args[0] is hidden else None


def _last(weights: fx.Node) -> fx.Node | None:
    """The product with v, [B, H, Sq, Dv]."""
    user = n.only_user(weights)
    while n.is_call(user, aten.expand.default, *RESHAPES):
        user = n.only_user(user)
    return n.only_user(user) if n.is_call(user, aten.bmm.default) else None


def _rounded(last: fx.Node, q: fx.Node) -> fx.Node | None:
    """The result in q's dtype."""
    if n.dtype(last) is n.dtype(q):
        return last
    user = n.only_user(last)
    return user if n.is_cast(user) and n.dtype(user) is n.dtype(q) else None


def _filled(node: Any) -> Any:
    return node.args[1] if n.is_call(node, aten.full.default) else None


def _is_causal(bias: fx.Node) -> bool:
    found = CAUSAL.match(bias)
    if found is None or len(n.shape(bias)) != 2:
        return False
    values = [_filled(found[name]) for name in ("seen", "hidden")]
    places = [node for node in found.nodes if node.target is prims.iota.default]
    counted = all((p.kwargs["start"], p.kwargs["step"]) == (0, 1) for p in places)
    return (
        counted and values == [0.0, -math.inf] and _filled(found.get("all", None)) in (True, None)
    )
