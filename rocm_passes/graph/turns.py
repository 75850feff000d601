"""Copies that turn a tensor from one memory layout to the other, by the padding kernel with nothing to pad.

A channels-last graph turns what comes in contiguous (weights, a chunk's cached frames) and what must go out so.
Inductor's copy walks one of the two in the wrong order: 1.5 ms for 88 million elements on an H200 (CogVideoX's
caches, python -m benchmarks.vae) where 0.1 ms would do.

Before                                          After
    w' = inductor_force_stride_order(w, ...)        w' = rocm_passes.pad(w, 0, channels_last=True)
    kept = clone(v[:, :, -2:])                      kept = rocm_passes.pad(v[:, :, -2:], 0, channels_last=False)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops import pad
from ..ops.conv3d.write import channels_last_strides
from ..ops.operator import NAMESPACE
from . import nodes as n
from .builder import Builder
from .nodes import aten

#: Below this many elements a copy takes a few microseconds in either order.
LEAST = 2**18


def turn_by_kernel(graph: fx.Graph, fake_mode: FakeTensorMode) -> int:
    """Replace the turning copies of what lies in memory anyway. Returns how many."""
    turned = 0
    for node in list(graph.nodes):
        to_last = _turns_in(node)
        if to_last or _turns_out(node):
            with graph.inserting_before(node):
                b = Builder(graph, fake_mode, node)
                x = n.argument(node)
                axes = len(n.shape(x)) - 2
                copy = b(
                    pad.OPERATOR.overload, x, [0] * (2 * axes), "zeros", [1] * axes, 0, to_last, "triton"
                )
            node.replace_all_uses_with(copy)
            graph.erase_node(node)
            turned += 1
    return turned


def _turns_in(node: fx.Node) -> bool:
    """A graph input, contiguous, that is asked for channels-last."""
    if not n.is_call(node, inductor_prims.force_stride_order) or not _is_worth_it(node):
        return False
    x = n.argument(node)
    wanted = tuple(n.arg(node, 1))
    last = tuple(channels_last_strides(n.shape(x)))
    return bool(x.op == "placeholder" and _is_contiguous(x) and wanted == last != n.tensor(x).stride())


def _turns_out(node: fx.Node) -> bool:
    """A contiguous copy, among the graph's results, of something that lies in memory channels-last."""
    if not n.is_call(node, aten.clone.default) or not _is_worth_it(node) or not _is_contiguous(node):
        return False
    if not any(user.op == "output" for user in node.users):
        return False
    x = n.argument(node)
    return n.tensor(x).stride(1) == 1 and not _is_contiguous(x) and _is_in_memory(x)


def _is_in_memory(x: fx.Node) -> bool:
    """A slice of, or the whole of, what a kernel of ours or a convolution has written: nothing Inductor computes."""
    while n.is_call(x, aten.slice.Tensor):
        x = n.argument(x)
    ours = isinstance(x.target, torch._ops.OpOverload) and x.target.namespace == NAMESPACE
    return ours or n.is_call(x, aten.convolution.default)


def _is_worth_it(node: fx.Node) -> bool:
    """Large, of sizes known at compile time, of elements that the kernel moves."""
    found = n.value(node)
    if found is None or found.dim() not in (4, 5) or found.itemsize > 8:
        return False
    sizes: tuple[Any, ...] = tuple(found.shape)
    if not all(isinstance(size, int) for size in sizes) or math.prod(sizes) < LEAST:
        return False
    # Of one channel or one pixel there is nothing to turn.
    return sizes[1] > 1 and math.prod(sizes[2:]) > 1


def _is_contiguous(x: fx.Node) -> bool:
    return n.tensor(x).is_contiguous()
