"""Rules for the memory format of a graph's convolutions: one answer for the whole graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.memory_format import mixes_pixels
from rocm_passes.fx.nodes import aten
from rocm_passes.kernels.aiter.aiter_conv import needs_conv
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.policy.convolution import FLYDSL
from rocm_passes.policy.rules import Evidence, Rule, decide
from rocm_passes.target import Target, unmet

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
        OPERATOR,
        LOWERING,
        "gfx950",
        {"convolutional": True, "flydsl": True},
        True,
        "aiter's FlyDSL convolution reads and writes channels-last",
        FLYDSL,
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
    quantities = {
        "convolutional": is_convolutional(len(graph.nodes), convolutions),
        "flydsl": _takes_flydsl(graph, target),
    }
    return decide(RULES, OPERATOR, LOWERING, quantities, target).pays


def _takes_flydsl(graph: fx.Graph, target: Target) -> bool:
    """Is it a graph of 3-D convolutions in bfloat16, for which aiter's FlyDSL kernel is there?"""
    if target.vendor != "amd" or unmet([needs_conv("flydsl")], target) is not None:
        return False
    videos = [
        x for node in n.calls(graph, aten.convolution.default) if _is_video(x := node.args[0])
    ]
    return bool(videos) and all(n.dtype(x) is torch.bfloat16 for x in videos)


def _is_video(x: Any) -> bool:
    return len(n.shape(x)) == 5


def is_convolutional(nodes: int, convolutions: int) -> bool:
    return nodes < bounds.NODES_PER_CONVOLUTION.value * convolutions
