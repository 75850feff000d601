"""A rotation's input read back to its norms: one, or one for each stream that a cat puts side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import rms as norms
from rocm_passes.idioms.rotary.dims import Dim, as_moves, cat_dim, followed
from rocm_passes.idioms.rotary.rotations import Rotation
from rocm_passes.ops.qk_norm_rotary import Norm
from rocm_passes.ops.rotary_layout import Recipe


@dataclass
class Part:
    """One stream of q or k: its norm, and the views from the norm's result to the
    rotation's input.
    """

    rms: norms.RMS
    views: list[fx.Node]
    nodes: set[fx.Node]


@dataclass
class Normed:
    """A rotation of normed streams. joint: the cat of the streams, where it stands before the
    rotation.
    """

    rotation: Rotation
    recipe: Recipe
    parts: list[Part]
    joint: fx.Node | None = None

    @property
    def nodes(self) -> set[fx.Node]:
        found = set(self.rotation.nodes).union(*(p.nodes for p in self.parts))
        return found | ({self.joint} if self.joint is not None else set())


def norm_results(graph: fx.Graph) -> dict[fx.Node, norms.RMS]:
    """Every RMSNorm by its result, and by what its last cast widens (it may be the rotation's
    cast).
    """
    found: dict[fx.Node, norms.RMS] = {}
    for node in n.calls(graph, aten.rsqrt.default):
        read = norms.read(node)
        if isinstance(read, norms.RMS) and _plain(read):
            found[read.result] = read
            if n.is_widening(read.result):
                found[n.argument(read.result)] = read
    for node in n.calls(graph, aten._fused_rms_norm.default):
        read = norms.read_fused(node)
        if isinstance(read, norms.RMS) and _plain(read):
            found[read.result] = read
    return found


def _plain(rms: norms.RMS) -> bool:
    """Is it a norm that the operator computes?"""
    return (
        isinstance(rms.eps, float)
        and rms.weight_offset == 0.0
        and rms.eps_kind == "add"
        and n.dtype(rms.x) in n.FLOATING
        and rms.compute_dtype is torch.float32
        and rms.round_to in (None, n.dtype(rms.x))
    )


def normed(
    rotation: Rotation, recipe: Recipe, results: Mapping[fx.Node, norms.RMS]
) -> Normed | None:
    """The rotation with the norms of its input, or None where that is no norm's result."""
    if recipe.view is not None:
        return None
    part = part_of(rotation.x, results)
    if part is not None:
        return Normed(rotation, recipe, [part])
    joint = rotation.x
    if recipe.seq_start is not None or not n.is_call(joint, aten.cat.default):
        return None
    if cat_dim(joint) != recipe.token_axis or any(u not in rotation.nodes for u in joint.users):
        return None
    parts = [part_of(p, results) for p in n.arg(joint, 0)]
    if any(p is None for p in parts):
        return None
    return Normed(rotation, recipe, [p for p in parts if p is not None], joint)


def part_of(x: fx.Node, results: Mapping[fx.Node, norms.RMS]) -> Part | None:
    """The norm behind x, through views that only x's own way uses."""
    views: list[fx.Node] = []
    node = x
    while node not in results:
        if not (node.op == "call_function" and node.target in n.VIEWS):
            return None
        views.insert(0, node)
        node = n.argument(node)
        if n.only_user(node) is not views[0]:
            return None
    rms = results[node]
    if not n.same_shape(n.shape(node), n.shape(rms.x)):
        return None
    # The norm ends at `node`: where a cast follows that widens it, that cast is the rotation's.
    nodes = {m for m in rms.nodes if m is not rms.result or m is node}
    return Part(rms, views, nodes | set(views))


def across_heads(part: Part, recipe: Recipe) -> bool | None:
    """Does the norm run over all heads of a token? None where it runs over neither them nor one
    head.
    """
    size = n.static_int(part.rms.size)
    dims = followed(n.shape(part.rms.x), part.views)
    if size is None or dims is None:
        return None
    *_, last = dims
    held = [d for d in dims if d.step is not None]
    if held == [last] == [Dim(size, 1)]:
        return recipe.heads > 1
    if "h" not in recipe.axes:
        return None
    heads = dims[recipe.axes.index("h")]
    # Channel c of head h must be element h * D + c of the norm's row.
    channels = last.size
    return True if len(held) == 2 and (heads.step, last.step) == (channels, 1) else None


def rounds_after(part: Part) -> bool | None:
    """Is the normed value rounded to the dtype of the norm's input before it is rotated? None: to
    another.
    """
    entering, own = n.dtype(_entering(part)), n.dtype(part.rms.x)
    if entering is own:
        return True
    return False if entering is torch.float32 else None


def _entering(part: Part) -> fx.Node:
    """The node that holds the norm's result as the rotation takes it."""
    if part.views:
        return n.argument(part.views[0])
    return part.rms.result if part.rms.result in part.nodes else n.argument(part.rms.result)


def norm_of(part: Part, recipe: Recipe) -> Norm:
    assert isinstance(part.rms.eps, float)
    return Norm(as_moves(part.views), recipe, part.rms.eps)
