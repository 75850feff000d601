"""Copies that turn a video from one memory layout to the other, by the padding kernel with nothing to pad.

A channels-last graph turns the cached frames that come in contiguous and those that must go out so. Inductor's copy
walks one of the two layouts in the wrong order: 1.5 ms for 88 million elements on an H200 (CogVideoX's caches,
python -m benchmarks.vae), a tenth of the memory's rate.

Before                                          After
    c' = inductor_force_stride_order(c, ...)        c' = rocm_passes.pad(c, 0, channels_last=True)
    kept = clone(v[:, :, -2:])                      kept = rocm_passes.pad(v[:, :, -2:], 0, channels_last=False)

Weights stay Inductor's: their few pixels leave the kernel's tiles half empty (Wan's decode took 10 ms longer).
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
LEAST = 2**20
#: A tile's pixels, many times over.
LEAST_PIXELS = 1024


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
    while n.is_call(x, aten.slice.Tensor):
        x = n.argument(x)
    # The slice's own value may date from before the rewrites, when all was contiguous.
    return n.tensor(x).stride(1) == 1 and not _is_contiguous(x) and _is_in_memory(x)


def _is_in_memory(x: fx.Node) -> bool:
    """Written by a kernel of ours or by a convolution: nothing that Inductor computes where it is read."""
    ours = isinstance(x.target, torch._ops.OpOverload) and str(x.target.namespace) == NAMESPACE
    return ours or n.is_call(x, aten.convolution.default)


def _is_worth_it(node: fx.Node) -> bool:
    """Large, of sizes known at compile time, of elements that the kernel moves."""
    found = n.value(node)
    if found is None or found.dim() not in (4, 5) or found.itemsize > 8:
        return False
    sizes: tuple[Any, ...] = tuple(found.shape)
    if not all(isinstance(size, int) for size in sizes) or math.prod(sizes) < LEAST:
        return False
    return bool(sizes[1] > 1 and math.prod(sizes[2:]) >= LEAST_PIXELS)


def _is_contiguous(x: fx.Node) -> bool:
    return n.tensor(x).is_contiguous()
