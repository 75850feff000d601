"""Conv2d: the same convolution in the layout that the graph's convolutions run in, or by a kernel
that was measured to be faster.

Before                                  After
    y = convolution(x, w, bias, ...)        y = convolution(channels_last(x),
                                                channels_last(w), bias, ...)

`channels_last` costs nothing where the tensor has that layout or Inductor may still choose it,
which is so for whatever a convolution, a norm or pointwise code computes. Inductor does this by
itself on some devices, unless its own heuristics say otherwise; a graph that mixes conv2d and
conv3d needs one answer for both.

On AMD a conv2d is a site in every layout: MIOpen's kernels have rivals there. Elsewhere, in a graph
that does not run channels-last, nothing is to be chosen, and it is no site.

Refused: transposed convolutions, which `conv_transposed` has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.videos import SORTED_BY
from rocm_passes.idioms.convolution.worth import worth_measuring
from rocm_passes.ops import conv2d as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import layout
from rocm_passes.rewrite.match import Context, Found, Idiom, Match
from rocm_passes.target import Target
from rocm_passes.tuning import tuning

NAME = "conv2d"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    graphs = layout.channels_last(graph, context.options, context.target)
    for node in n.calls(graph, aten.convolution.default):
        if len(n.shape(node.args[0])) != 4 or node.args[6]:
            continue
        last = graphs and memory_format.suits(node)
        if last or context.target.vendor == "amd":
            parameters = (
                {"channels_sorted_by": node.meta[SORTED_BY]} if SORTED_BY in node.meta else {}
            )
            arguments: Any = node.args
            call = replace(op.Conv2d(*arguments), channels_last=last)
            yield Match(node, frozenset({node}), (node,), call, {}, parameters)


def measured(
    able: Sequence[Lowering[Any]], call: op.Conv2d, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where there is a choice and it is enough work to time."""
    if len(able) < 2 or not call.has_numbers() or not worth_measuring(call):
        return None
    return tuning.pick(call.key(), able, call, target, options)


IDIOM = Idiom(NAME, find, op.CONV2D.lowerings, measured=measured)
