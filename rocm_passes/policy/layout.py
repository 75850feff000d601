"""Rules for the memory format of a graph's convolutions: one answer for the whole graph."""

from __future__ import annotations

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.memory_format import mixes_pixels
from rocm_passes.fx.nodes import aten
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.policy.rules import Evidence, Rule, decide
from rocm_passes.target import Target

OPERATOR, LOWERING = "memory_format", "channels_last"

RULES = [
    Rule(
        OPERATOR,
        LOWERING,
        "nvidia",
        {"convolutional": True},
        True,
        "convolutions run channels-last, without conversions between neighbours",
        Evidence(
            "H200",
            figures="conv3d channels-last 0.42 to 0.73 vs. 0.63 to 0.86 ms as it is",
            docs="docs/tuning.md",
        ),
        "python -m rocm_passes.bench.conv3d",
    ),
    Rule(
        OPERATOR, LOWERING, "any", {}, False, "left to Inductor", Evidence(figures="not measured")
    ),
]


def channels_last(graph: fx.Graph, options: Options, target: Target) -> bool:
    """Do this graph's convolutions run channels-last? As the option says, or by rule.

    Not in strict numerics: in another layout a library sums in another order.
    """
    if options.rewrite_numerics == "strict":
        return False
    if options.layout != "auto":
        return options.layout == "channels_last"
    convolutions = sum(mixes_pixels(node) for node in n.calls(graph, aten.convolution.default))
    quantities = {"convolutional": is_convolutional(len(graph.nodes), convolutions)}
    return decide(RULES, OPERATOR, LOWERING, quantities, target).pays


def is_convolutional(nodes: int, convolutions: int) -> bool:
    return nodes < bounds.NODES_PER_CONVOLUTION.value * convolutions
