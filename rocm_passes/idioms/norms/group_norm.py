"""GroupNorm of an image or video, with whatever follows it in a VAE.

    GroupNorm                       attention, Mochi, Cosmos, Magvit
    GroupNorm, SiLU                 every image VAE, HunyuanVideo
    GroupNorm * y + b, SiLU         CogVideoX's SpatialNorm3D (convolutions of the latent)

Before                                          After
    g = native_group_norm(x, w, b, N, C, HW,        y = rocm_passes.group_norm(x, None, 32, w, b,
            32, eps)[0]                                     eps, True, None, None, True, bf16, ...,
    y = silu(g)                                             "triton")

Where y and b are nearest-upsampled, `passes.gather_in_norm` lets the kernel read them by index, not
written out.

When it pays: on large activations, most of all channels-last, where Inductor's two-pass reduction
crosses memory in the wrong order. The result keeps x's layout.

Refused: the mean or rsqrt used elsewhere (saved for a backward pass); fp64; an inner value used
outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms.rows import dying_casts
from rocm_passes.ops import group_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded
from rocm_passes.rewrite.rewriter import escapes

NAME = "group_norm"
COVERS = {"group_norm": 1}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for node in n.calls(graph, aten.native_group_norm.default):
        yield from guarded(node, COVERS, read, node)


def read(node: fx.Node) -> Found:
    """The norm and what belongs to it behind it, or why it can't be rewritten."""
    given, weight, bias, _, _, _, groups, eps = node.args
    assert isinstance(given, fx.Node)
    x = n.through_widening(given)
    parameters = {"groups": groups, "eps": eps, "x_dtype": n.dtype(x), "rank": len(n.shape(x))}
    if [u for u in node.users if u.args[1] != 0 and u.users]:
        reason = "its mean or rsqrt is used outside the norm, as for a backward pass"
        return Miss(node, reason, COVERS, parameters)
    normed = n.get_item(node, 0)
    if normed is None:
        return Miss(node, "its result is not used", COVERS, parameters)
    nodes = {node, *node.users}
    for cast in (given, weight, bias):
        nodes |= dying_casts(cast, nodes)
    multiplier, addend, last = _spatial(normed, nodes)
    last, silu = silu_after(last, nodes)
    last = final_cast(last, nodes)
    dtypes = (n.dtype(x), n.dtype(last))
    if not all(d in n.FLOATING for d in dtypes) or n.dtype(given) is torch.float64:
        reason = f"it computes in {n.dtype(given)} and gives {dtypes[1]}"
        return Miss(node, reason, COVERS, parameters)
    outside = escapes(frozenset(nodes), (last,))
    if outside is not None:
        reason = f"an inner value ({outside.name}) is used outside the norm"
        return Miss(node, reason, COVERS, parameters)
    arguments: dict[str, Any] = {
        "x": x,
        "x_bias": None,
        "groups": groups,
        "weight": n.through_widening(weight),
        "bias": n.through_widening(bias),
        "eps": eps,
        "silu": silu,
        "multiplier": multiplier,
        "addend": addend,
        "rounds_between": last is not normed and n.dtype(normed) in n.LOW_PRECISION,
        "out_dtype": n.dtype(last),
        "pixel_index": None,
        "front": None,
        "repeat_first": 0,
    }
    parameters |= {"silu": silu, "spatial": multiplier is not None}
    return Match(node, frozenset(nodes), (last,), op.GroupNorm(**arguments), COVERS, parameters)


def _spatial(
    normed: fx.Node, nodes: set[fx.Node]
) -> tuple[fx.Node | None, fx.Node | None, fx.Node]:
    """(multiplier, addend, last node) of `normed * multiplier + addend`, each of normed's
    own size.
    """
    product = n.only_user(normed)
    if not n.is_call(product, aten.mul.Tensor):
        return None, None, normed
    multiplier = next((o for v, o in n.operands(product) if v is normed), None)
    total = n.only_user(product)
    if not _same_size(multiplier, normed) or not (
        n.is_call(total, aten.add.Tensor) and n.alpha_is_one(total)
    ):
        return None, None, normed
    addend = next((o for v, o in n.operands(total) if v is product), None)
    if not _same_size(addend, normed) or multiplier is normed:
        return None, None, normed
    nodes |= {product, total}
    return n.through_widening(multiplier), n.through_widening(addend), total


def _same_size(node: object, other: fx.Node) -> bool:
    return isinstance(node, fx.Node) and n.same_shape(n.shape(node), n.shape(other))


def silu_after(last: fx.Node, nodes: set[fx.Node]) -> tuple[fx.Node, bool]:
    """(the SiLU, True) where it is the value's only use, else the value as it was. A norm that
    feeds a SiLU and something else ends before it.
    """
    user = n.only_user(last)
    if not n.is_call(user, aten.silu.default):
        return last, False
    nodes.add(user)
    return user, True


def final_cast(last: fx.Node, nodes: set[fx.Node]) -> fx.Node:
    """Past a narrowing cast that is the value's only use."""
    user = n.only_user(last)
    if (
        user is None
        or not n.is_cast(user)
        or n.is_widening(user)
        or n.dtype(user) not in n.FLOATING
    ):
        return last
    nodes.add(user)
    return user


IDIOM = Idiom(
    NAME, find, op.GROUP_NORM.lowerings, op.GROUP_NORM, preserves=("native_group_norm", "silu")
)
