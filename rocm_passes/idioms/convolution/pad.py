"""Padding that a convolution has no padding of its own for: replicate, reflect, and unlike zeros on
two sides.

Before (HunyuanVideo's upsampler)                   After
    f, r = split_with_sizes(x, [1, T - 1], 2)           p = rocm_passes.pad(x, [1, 1, 1, 1, 2, 0],
    u = cat([nearest(f), nearest(r)], 2)                        "replicate", [2, 2, 2], 1, True,
    p = replication_pad3d(u, [1, 1, 1, 1, 2, 0])                "triton")
    y = convolution(p, w, bias, ...)                    y = convolution(p, w, bias, ...)

A pad by nothing (a causal convolution of kernel 1) is left out.

When it pays: on large tensors in front of a convolution that runs channels-last, where Inductor's
gather is a copy that crosses memory in the wrong order.

Refused: a pad that no convolution reads; negative or symbolic padding; no batch dim; a pad by
nothing that something else reads as well. Zeros alike on both sides are the convolution's own
padding, and no site; nor are those that conv3d has taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution import upsampling
from rocm_passes.ops import pad as op
from rocm_passes.policy import layout
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded

NAME = "pad"
MODES: dict[Any, str] = {
    aten.replication_pad2d.default: "replicate",
    aten.replication_pad3d.default: "replicate",
    aten.reflection_pad2d.default: "reflect",
    aten.reflection_pad3d.default: "reflect",
    aten.constant_pad_nd.default: "zeros",
}
PRESERVES = ("replication_pad2d", "replication_pad3d", "reflection_pad2d", "reflection_pad3d")


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    last = layout.channels_last(graph, context.options, context.target)
    for node in n.calls(graph, *MODES):
        if is_candidate(node):
            yield from guarded(node, {}, _found, node, last)


def is_candidate(node: fx.Node) -> bool:
    """Not a constant pad, unless it is of zeros, unlike on two sides of a dim of space, before a
    convolution.
    """
    if MODES[node.target] != "zeros":
        return True
    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
    pads: Any = node.args[1]
    spatial = list(zip(pads[:4:2], pads[1:4:2], strict=False))
    rank = len(n.shape(node))
    within = rank in (4, 5) and len(pads) <= 2 * (rank - 2)
    return bool(value == 0 and within and convolutions(node) and any(a != b for a, b in spatial))


def covers(node: fx.Node) -> dict[str, int]:
    """Pads of zeros are no idiom by themselves: most of them are a part of conv3d."""
    return {} if MODES[node.target] == "zeros" else {NAME: 1}


def _found(node: fx.Node, channels_last: bool) -> Found:
    parameters: dict[str, Any] = {"mode": MODES[node.target], "padding": node.args[1]}
    reason = refusal(node)
    if reason is not None:
        return Miss(node, reason, covers(node), parameters)
    x = upsampling.read(n.argument(node))
    arguments: dict[str, Any] = {
        "x": x.source,
        "padding": padding(node),
        "mode": MODES[node.target],
        "repeats": list(x.repeats),
        "skipped": x.skipped,
        "channels_last": into_channels_last(node, channels_last),
    }
    parameters |= {name: arguments[name] for name in ("repeats", "skipped", "channels_last")}
    return Match(node, dying(node, x.nodes), (node,), op.Pad(**arguments), covers(node), parameters)


def refusal(node: fx.Node) -> str | None:
    pads: Any = node.args[1]
    reads = convolutions(node)
    if not reads:
        return "no convolution reads it"
    if len(n.shape(node)) not in (4, 5) or (
        MODES[node.target] != "zeros" and len(pads) != 2 * _axes(node)
    ):
        return f"its input has no batch dim: {tuple(n.shape(node.args[0]))}"
    if not all(isinstance(p, int) for p in pads):
        return "its padding is symbolic"
    if min(pads) < 0:
        return f"negative padding crops: {list(pads)}"
    if not any(pads) and len(reads) < len(node.users):
        return "it pads by nothing, and more than convolutions reads the copy"
    return None


def convolutions(node: fx.Node) -> list[fx.Node]:
    return [u for u in node.users if n.is_call(u, aten.convolution.default) and u.args[0] is node]


def padding(node: fx.Node) -> list[int]:
    """As F.pad's, for every spatial dim."""
    pads: Any = node.args[1]
    return [*pads, *[0] * (2 * _axes(node) - len(pads))]


def into_channels_last(node: fx.Node, channels_last: bool) -> bool:
    """Is the convolution that reads it one of those that run channels-last?"""
    return channels_last and any(memory_format.suits(c) for c in convolutions(node))


def dying(node: fx.Node, behind: frozenset[fx.Node]) -> frozenset[fx.Node]:
    """The pad, and of the nodes behind it those whose every use is among them."""
    dead = {node}
    more = True
    while more:
        found = {b for b in behind - dead if all(user in dead for user in b.users)}
        dead |= found
        more = bool(found)
    return frozenset(dead)


def _axes(node: fx.Node) -> int:
    return len(n.shape(node)) - 2


IDIOM = Idiom(NAME, find, op.PAD.lowerings, op.PAD, preserves=PRESERVES)
