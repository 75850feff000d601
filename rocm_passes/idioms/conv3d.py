"""Conv3d: `aten.convolution` over five dimensions, not transposed, to a lowering that suits the device.

Before                                          After, by temporal unfold
    y = convolution(x, w, bias, stride, ...)        f = reshape(permute(stack([x[:, :, k::s] for k]))), frames
                                                    y = reshape(convolution2d(f, reshape(w), bias)), video

When it pays: on AMD, by published results, since MIOpen had no heuristics for 3-D convolutions; on NVIDIA
cuDNN's conv3d or the sum of taps wins, by shape.

Refused: an empty result (eager raises there); symbolic weight sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from ..graph import nodes as n
from ..graph.nodes import aten
from ..ops import conv3d as op
from .idiom import Context, Found, Idiom, NearMiss, Site

NAME = "conv3d"
COVERS = {"conv3d": 1}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for node in n.calls(graph, aten.convolution.default):
        if len(n.shape(node.args[0])) == 5 and not node.args[6]:
            yield _found(node)


def _found(node: fx.Node) -> Found:
    x, weight, bias, stride, padding, dilation, _, _, groups = node.args
    names = ("stride", "padding", "dilation")
    parameters = {
        "kernel": list(n.shape(weight)[2:]),
        **{k: list(v) for k, v in zip(names, (stride, padding, dilation), strict=True)},  # type: ignore[arg-type]
        "groups": groups,
        "bias": bias is not None,
    }
    reason = refusal(node)
    if reason is not None:
        return NearMiss(node, reason, COVERS, parameters)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "stride": _three(stride),
        "padding": _three(padding),
        "dilation": _three(dilation),
        "groups": groups,
    }
    return Site(node, frozenset({node}), (node,), arguments, COVERS, parameters)


def refusal(node: fx.Node) -> str | None:
    if not all(isinstance(s, int) for s in n.shape(node.args[1])):
        return "the weight's sizes are symbolic"
    if not all(n.known(s > 0) for s in n.shape(node)):
        return f"its result is, or may be, empty: {tuple(n.shape(node))}"
    return None


def _three(values: Any) -> tuple[int, ...]:
    """A convolution's list argument as three numbers (ATen lets one stand for all)."""
    found = tuple(values)
    return found * 3 if len(found) == 1 else found


IDIOM = Idiom(NAME, find, op.LOWERINGS)
