"""Conv2d: the same convolution in the layout that the graph's convolutions run in, or by a kernel
that was measured to be faster.

Before                                  After
    y = convolution(x, w, bias, ...)        y = convolution(channels_last(x),
                                                channels_last(w), bias, ...)

Before (an upsampler)                   After, as one kernel
    u = _unsafe_index(x, [None, None,       y = implicit_gemm_conv(x, w, bias, ...,
            [0, 0, 1, ...], ...])                   upsample=[2, 2], padding=[1, 1])
    y = convolution(u, w, bias, ...)

`channels_last` costs nothing where the tensor has that layout or Inductor may still choose it,
which is so for whatever a convolution, a norm or pointwise code computes. Inductor does this by
itself on some devices, unless its own heuristics say otherwise; a graph that mixes conv2d and
conv3d needs one answer for both.

Nearest upsampling in front belongs to the call where nothing else reads what it writes: our kernel
then reads each pixel where it lies, and the upsampled tensor, four times as large, is not written.
Libraries get it written as before.

On AMD a conv2d is a site in every layout: MIOpen's kernels have rivals there. Elsewhere, in a graph
that does not run channels-last, nothing is to be chosen, and it is no site.

Refused: transposed convolutions, which `conv_transposed` has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution import upsampling
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
            yield _site(node, last)


def _site(node: fx.Node, channels_last: bool) -> Match:
    arguments: list[Any] = [*node.args]
    call = replace(op.Conv2d(*arguments), channels_last=channels_last)
    parameters: dict[str, Any] = {}
    if SORTED_BY in node.meta:
        parameters["channels_sorted_by"] = node.meta[SORTED_BY]
    read = upsampling.read(n.argument(node))
    if read.repeats == (1, 1) or not _read_by_it_alone(read.nodes, node):
        return Match(node, frozenset({node}), (node,), call, {}, parameters)
    down, across = read.repeats
    arguments[0] = read.source
    call = replace(op.Conv2d(*arguments), channels_last=channels_last, upsample=(down, across))
    parameters["upsampled"] = [down, across]
    return Match(node, frozenset({node, *read.nodes}), (node,), call, {}, parameters)


def _read_by_it_alone(upsampling: Collection[fx.Node], node: fx.Node) -> bool:
    """Do the nodes serve as the convolution's input, and as nothing else?"""
    within = {node, *upsampling}
    return all(user in within for each in upsampling for user in each.users) and all(
        argument not in upsampling for argument in node.args[1:3]
    )


def measured(
    able: Sequence[Lowering[Any]], call: op.Conv2d, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where there is a choice and it is enough work to time."""
    if len(able) < 2 or not call.has_numbers() or not worth_measuring(call):
        return None
    return tuning.pick(call.key(), able, call, target, options)


IDIOM = Idiom(NAME, find, op.CONV2D.lowerings, measured=measured)
