"""Is a graph bound by the device, whatever the host needs to launch it?

Then what a candidate costs the host longer costs the model nothing. Decided only where it is beyond
doubt: the device's time of the matrix products, convolutions and attention alone, at the rate of a
fast card, against a slow host's for all launches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from rocm_passes.fx import nodes as n
from rocm_passes.policy.bounds import CALL_HOST_SECONDS, FASTEST_MATRIX_RATE


def is_hidden(graph: fx.Graph) -> bool:
    """Is the host sure to be done before the device? False where sizes are symbolic."""
    work = [operations(node) for node in graph.nodes if is_heavy(node)]
    device = sum(work) / FASTEST_MATRIX_RATE.value
    return device > len(work) * CALL_HOST_SECONDS.value


def is_heavy(node: fx.Node) -> bool:
    """Does torch count the floating-point operations of such a call?"""
    return getattr(node.target, "overloadpacket", None) in flop_registry


def operations(node: fx.Node) -> int:
    """Floating-point operations of one call; 0 where they are not known."""
    count: Any = flop_registry[node.target.overloadpacket]  # type: ignore[union-attr]
    args, kwargs = pytree.tree_map_only(fx.Node, n.value, (node.args, node.kwargs))
    result = node.meta.get("val")
    leaves = pytree.tree_leaves((args, kwargs, result))
    sizes = [s for leaf in leaves if isinstance(leaf, Tensor) for s in leaf.shape]
    if result is None or any(isinstance(size, torch.SymInt) for size in sizes):
        return 0
    try:
        return int(count(*args, **kwargs, out_val=result))
    except (AssertionError, TypeError, ValueError):  # Arguments that torch's formula does not take.
        return 0
