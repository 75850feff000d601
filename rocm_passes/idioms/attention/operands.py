"""The operands of an attention: what both ways to read one ask of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten

RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Read:
    """An attention that was read off the graph.

    out: the node of its result [B, H, Sq, Dv]. nodes: what the result is made of and nothing else
    reads. k, v: perhaps with fewer heads than q. bias: as added to the scaled scores.
    """

    out: fx.Node
    nodes: frozenset[fx.Node]
    q: fx.Node
    k: fx.Node
    v: fx.Node
    bias: fx.Node | None
    scale: float
    causal: bool
    kernel: str


def refusal(q: fx.Node, k: fx.Node, v: fx.Node, bias: fx.Node | None) -> str | None:
    """Why operands are none that a lowering is for, or None."""
    for name, node in (("q", q), ("k", k), ("v", v)):
        if len(n.shape(node)) != 4:
            return f"{name} has shape {tuple(n.shape(node))}, and not [B, H, S, D]"
    dtypes = [n.dtype(node) for node in (q, k, v)]
    if dtypes[0] not in n.FLOATING or len(set(dtypes)) != 1:
        said = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        return f"q, k and v are {said}: one of bfloat16, float16 and float32 is read"
    (batch, heads, _, size), (_, key_heads, keys, _) = n.shape(q), n.shape(k)
    wanted = (batch, key_heads, keys)
    fits = n.same_shape(n.shape(k), (*wanted, size)) and n.same_shape(n.shape(v)[:3], wanted)
    if not fits or not n.known(heads % key_heads == 0):
        shapes = ", ".join(str(list(n.shape(node))) for node in (q, k, v))
        return f"q, k and v of shapes {shapes} are not known to fit together without a broadcast"
    if bias is not None and n.dtype(bias) not in n.FLOATING:
        return f"its mask is {str(n.dtype(bias)).removeprefix('torch.')}, which is not added"
    return None


def ungrouped(node: fx.Node) -> fx.Node:
    """[B, Hk, S, D], where the node repeats each of its heads for a group of query heads; else the
    node.

    Before                                          After
        u = unsqueeze(x, 2)                             x
        e = expand(u, [B, Hk, group, S, D])
        y = reshape(clone(e), [B, Hk * group, S, D])
    """
    if not n.is_call(node, *RESHAPES):
        return node
    repeated = n.argument(node)
    if n.is_call(repeated, aten.clone.default):
        repeated = n.argument(repeated)
    if not n.is_call(repeated, aten.expand.default) or len(n.shape(repeated)) != 5:
        return node
    single = n.argument(repeated)
    if not n.is_call(single, aten.unsqueeze.default) or single.args[1] not in (2, -3):
        return node
    source = n.argument(single)
    (batch, heads, _, *rest), found = n.shape(repeated), n.shape(node)
    whole = (batch, heads, *rest)
    if not n.same_shape(n.shape(source), whole) or len(found) != 4:
        return node
    same = n.same_size(found[0], batch) and n.same_shape(found[2:], rest)
    return source if same else node


def key_heads(k: fx.Node, v: fx.Node) -> tuple[fx.Node, fx.Node]:
    """k and v as they are before their heads are repeated, where both are repeated alike."""
    single = ungrouped(k), ungrouped(v)
    return single if n.same_size(*(n.shape(node)[1] for node in single)) else (k, v)
