"""Transposed convolutions, of 2-D and 3-D, whose kernel is as large as their stride.

Before (one of the 28 of an inverse Haar transform)     After, depthwise
    y = convolution(x, w, None, [1, 1, 2], ...,             y = reshape(x[..., None] * w)
    transposed)
                                                        After, of one group
                                                            y = move(mm(x's pixels, w))

When it pays: depthwise on a GPU always, since pointwise code reads and writes as little as any
convolution and fuses with its neighbours; of one group where a measurement says so.

Refused by both: outputs that overlap, padding, dilation, symbolic sizes. They stay the library's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.worth import worth_measuring
from rocm_passes.ops import conv_transposed as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded
from rocm_passes.target import Target
from rocm_passes.tuning import tuning

NAME = "conv_transposed"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for node in n.calls(graph, aten.convolution.default):
        if len(n.shape(node.args[0])) in (4, 5) and node.args[6]:
            yield from guarded(node, {}, _found, node)


def _found(node: fx.Node) -> Found:
    arguments: Any = node.args
    _, weight, bias, stride, *_, groups = arguments
    if not all(n.known(size > 0) for size in n.shape(node)):
        return Miss(node, f"its result is, or may be, empty: {tuple(n.shape(node))}", {})
    parameters = {
        "kernel": list(n.shape(weight)[2:]),
        "stride": list(stride),
        "groups": groups,
        "bias": bias is not None,
    }
    call = op.ConvTransposed(*arguments)
    return Match(node, frozenset({node}), (node,), call, {}, parameters)


def measured(
    able: Sequence[Lowering[Any]], call: op.ConvTransposed, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where it is enough work to time and is no pointwise code."""
    names = {low.name for low in able}
    if "matmul" not in names or "product" in names or not worth_measuring(call):
        return None
    return tuning.pick(call.key(), able, call, target, options)


IDIOM = Idiom(NAME, find, op.CONV_TRANSPOSED.lowerings, measured=measured)
