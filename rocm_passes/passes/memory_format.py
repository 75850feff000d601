"""In which memory layout the convolutions of a graph run: one answer for the whole graph.

Between neighbours of unlike layout stands a conversion that reads and writes the whole activation. Pointwise
code, norms, upsampling and cats take on the layout of the convolutions round them, so these decide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import aten
from rocm_passes.ops.conv3d.write import channels_last_strides
from rocm_passes.ops.operator import NAMESPACE
from rocm_passes.passes import sort_depth_to_space as depth_to_space
from rocm_passes.rewrite.match import Context

#: Where other nodes outnumber convolutions by this much, it is no convolutional network (as Inductor has it).
NODES_PER_CONVOLUTION = 300


def channels_last(graph: fx.Graph, context: Context) -> bool:
    """Do this graph's convolutions run channels-last? As asked for, or by rule: on NVIDIA GPUs, yes."""
    wanted = context.options.layout
    if wanted != "auto":
        return wanted == "channels_last"
    if context.target is None or context.target.vendor != "nvidia":
        return False
    convolutions = [node for node in n.calls(graph, aten.convolution.default) if mixes_pixels(node)]
    return bool(convolutions) and len(graph.nodes) < NODES_PER_CONVOLUTION * len(convolutions)


def sort_channels(graph: fx.Graph, context: Context, fake_mode: FakeTensorMode) -> int:
    """Sort what a depth-to-space shuffles, where the convolution in front runs channels-last. Returns how many."""
    if not channels_last(graph, context):
        return 0
    return depth_to_space.sort_channels(graph, fake_mode, suits)


FORCE = n.prims.inductor_force_stride_order.default
#: Operators of ours that work in whatever layout they are given, and give it on.
FOLLOWING = ("channel_norm", "group_norm")
#: Those that read any layout and write the one in their last argument but one: a turn is theirs to spare.
WRITING = ("pad", "group_norm_pad")


def settle_norms(graph: fx.Graph, fake_mode: FakeTensorMode) -> int:
    """Ask for channels-last in front of our norms and pads, in a graph of that layout. Returns how many there were.

    To Inductor they are opaque: what is computed for them alone it would lay out as eager code does, and the
    norm would carry that layout on to the next convolution.
    """
    found = [
        node
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace == NAMESPACE
        and (node.target._opname in FOLLOWING or (node.target._opname in WRITING and _gains(node)))
    ]
    for node in found:
        x = n.argument(node)
        if not all(isinstance(size, int) for size in n.shape(x)):
            continue
        for operand in dict.fromkeys(a for a in node.all_input_nodes if n.same_shape(n.shape(a), n.shape(x))):
            with graph.inserting_before(node):
                b = Builder(graph, fake_mode, node)
                strides = channels_last_strides(n.shape(operand))
                asked = b(inductor_prims.force_stride_order, _uncopied(operand), strides)
                node.replace_input_with(operand, asked)
    return len(found)


def _uncopied(x: fx.Node) -> fx.Node:
    """x before it was copied into another layout: ATen's GroupNorm has a contiguous copy made on a GPU.

    Asked for behind the copy, the layout would not be shared with who reads x itself, and x be written twice.
    """
    while n.is_call(x, aten.clone.default):
        x = n.argument(x)
    return x


def _gains(node: fx.Node) -> bool:
    """Does it write channels-last what could be made so? The graph's inputs lie as they do."""
    return bool(node.args[-2]) and n.argument(node).op != "placeholder"


def share_layouts(graph: fx.Graph) -> int:
    """Let all that read a tensor read it where it was asked for in a layout. Returns how many were redirected.

    Each request is a copy of its own to Inductor, of what is pointwise so far, and who did not ask computes it once
    more from what it was computed from, which stays in memory for that long: a convolution's result before its bias.
    """
    redirected = 0
    first: dict[tuple[fx.Node, tuple[Any, ...]], fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=FORCE):
        x, strides = n.argument(node), tuple(n.arg(node, 1))
        is_so = n.is_call(x, FORCE) and tuple(n.arg(x, 1)) == strides
        alike = x if is_so else first.setdefault((x, strides), node)
        if alike is not node:
            redirected += len(node.users)
            node.replace_all_uses_with(alike)
            graph.erase_node(node)
        elif x.op != "placeholder" and list(strides) == channels_last_strides(n.shape(x)):
            readers = {user for user in x.users if user is not node and user.op != "output"}
            redirected += len(readers)
            x.replace_all_uses_with(node, delete_user_cb=readers.__contains__)
    return redirected


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
