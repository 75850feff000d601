"""In which memory format the convolutions of a graph run: one answer for the whole graph.

Between neighbours of unlike format stands a conversion that reads and writes the whole activation. Pointwise
code, norms, upsampling and cats take on the format of the convolutions round them, so these decide.
"""

from __future__ import annotations

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.options import Options
from rocm_passes.target import Target

#: Where other nodes outnumber convolutions by this much, it is no convolutional network (as Inductor has it).
NODES_PER_CONVOLUTION = 300


def channels_last(graph: fx.Graph, options: Options, target: Target) -> bool:
    """Do this graph's convolutions run channels-last? As asked for, or by rule: on NVIDIA GPUs, yes."""
    if options.layout != "auto":
        return options.layout == "channels_last"
    if target.vendor != "nvidia":
        return False
    convolutions = [node for node in n.calls(graph, aten.convolution.default) if mixes_pixels(node)]
    return bool(convolutions) and len(graph.nodes) < NODES_PER_CONVOLUTION * len(convolutions)


def mixes_pixels(node: fx.Node) -> bool:
    """Not a matrix product in disguise (1x1, or a patch embedding)."""
    kernel = n.shape(node.args[1])[2:]
    stride = node.args[3]
    return any(k > 1 for k in kernel) and tuple(kernel) != tuple(stride)  # type: ignore[arg-type]


def suits(node: fx.Node) -> bool:
    """Grouped convolutions with several channels a group are slow channels-last; they keep their layout.

    So do those of symbolic size, as in Inductor: strides cannot be asked for before sizes are numbers.
    """
    groups = node.args[8]
    if not all(isinstance(size, int) for size in n.shape(node.args[0])):
        return False
    return bool(groups == 1 or n.shape(node.args[1])[1] == 1)
