"""Conv2d in a graph that runs channels-last: the same convolution, its input and weight in that layout.

Before                                  After
    y = convolution(x, w, bias, ...)        y = convolution(channels_last(x), channels_last(w), bias, ...)

`channels_last` costs nothing where the tensor has that layout or Inductor may still choose it, which is so
for whatever a convolution, a norm or pointwise code computes. Inductor does this by itself on some devices,
unless its own heuristics say otherwise; a graph that mixes conv2d and conv3d needs one answer for both.

Refused: nothing; a convolution that layout does not suit is not a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch._inductor import inductor_prims

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.videos import SORTED_BY
from rocm_passes.ops.conv3d.write import channels_last_strides
from rocm_passes.ops.operator import Lowering, Verdict
from rocm_passes.rewrite.match import Context, Found, Idiom, Match

NAME = "conv2d"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    if not memory_format.channels_last(graph, context.options, context.target):
        return
    for node in n.calls(graph, aten.convolution.default):
        if len(n.shape(node.args[0])) == 4 and not node.args[6] and memory_format.suits(node):
            names = (
                "x",
                "weight",
                "bias",
                "stride",
                "padding",
                "dilation",
                "transposed",
                "output_padding",
                "groups",
            )
            arguments = dict(zip(names, node.args, strict=True))
            parameters = {"channels_sorted_by": node.meta[SORTED_BY]} if SORTED_BY in node.meta else {}
            yield Match(node, frozenset({node}), (node,), arguments, {}, parameters)


def write_channels_last(b: Any, x: Any, weight: Any, **rest: Any) -> Any:
    x = b(inductor_prims.force_stride_order, x, channels_last_strides(b.value(x).shape))
    weight = b(inductor_prims.force_stride_order, weight, channels_last_strides(b.value(weight).shape))
    return b(aten.convolution.default, x, weight, *rest.values())


def _pays(_: Any, **__: Any) -> Verdict:
    return Verdict(True, "channels-last through the whole graph, without conversions between neighbours")


IDIOM = Idiom(NAME, find, (Lowering("channels_last", pays=_pays, write=write_channels_last),))
