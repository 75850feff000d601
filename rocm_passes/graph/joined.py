"""Frames in front of a norm's result, written where the convolution reads them.

A causal convolution reads the last frames of the chunk before in front of its own. To Inductor a norm of ours is
opaque, and the cat a copy of the whole video:

Before                                          After
    y = rocm_passes.group_norm(x, ...)              v = rocm_passes.group_norm(x, ..., front cache)
    v = cat([cache, y], 2)                          y = v[:, :, 2:]
    z = convolution(v, ...)                         z = convolution(v, ...)
    kept = y[:, :, -2:]                             kept = y[:, :, -2:]

conv3d's lowerings spell the cat over [N, T, H, W, C] where the video is channels-last; both are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops import channel_norm, group_norm
from . import nodes as n
from .builder import Builder
from .nodes import aten, prims
from .time_slices import TIME, is_joined_video

OPERATORS = {o.overload: o for o in (channel_norm.OPERATOR, group_norm.OPERATOR)}
#: [N, C, T, H, W] to [N, T, H, W, C] and back, as conv3d's lowerings spell a channels-last cat.
CHANNELS_BEHIND, CHANNELS_FIRST = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]


@dataclass(frozen=True)
class Join:
    """`front` and then `norm`'s frames; `video`: the node that stands for them."""

    front: fx.Node
    norm: fx.Node
    video: fx.Node


def absorb_joins(graph: fx.Graph, fake_mode: FakeTensorMode) -> dict[fx.Node, int]:
    """Give our norms the frames that a cat puts in front of them. Returns how many, by the norm that there was."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    joins: dict[fx.Node, list[Join]] = {}
    for cat in n.calls(graph, aten.cat.default):
        join = _read(cat)
        if join is not None:
            joins.setdefault(join.norm, []).append(join)
    found = {}
    for norm, of_norm in joins.items():
        # Into one video it can be written; in front of it can stand what is there before it is.
        if len(of_norm) == 1 and _is_free(norm) and order[of_norm[0].front] < order[norm]:
            found[norm] = n.shape(of_norm[0].front)[TIME]
            _absorb(of_norm[0], fake_mode)
    return found


def _read(cat: fx.Node) -> Join | None:
    """A cat in time of two tensors, the second a norm of ours."""
    video: fx.Node | None = cat
    if is_joined_video(cat):
        pieces = list(n.arg(cat, 0))
    elif len(n.shape(cat)) == 5 and n.joined_dim(cat) == CHANNELS_BEHIND.index(TIME):
        pieces = [p.args[0] if _permutes(p, CHANNELS_BEHIND) else None for p in n.arg(cat, 0)]
        video = n.only_user(cat)
        if not _permutes(video, CHANNELS_FIRST):
            return None
    else:
        return None
    if len(pieces) != 2 or video is None or not n.is_call(pieces[1], *OPERATORS):
        return None
    front = pieces[0]
    while n.is_call(front, prims.inductor_force_stride_order.default):
        # The kernel reads it as it comes.
        front = front.args[0]
    if not isinstance(front, fx.Node) or not all(isinstance(s, int) for s in n.shape(video)):
        return None
    return Join(front, pieces[1], video)


def _permutes(node: object, dims: list[int]) -> bool:
    return n.is_call(node, aten.permute.default) and list(n.arg(node, 1)) == dims


def _is_free(norm: fx.Node) -> bool:
    """Written by our kernel, and not behind other frames already."""
    at = OPERATORS[norm.target].parameters.index("front")
    return bool(norm.args[-1] == "triton" and norm.args[at] is None)


def _absorb(join: Join, fake_mode: FakeTensorMode) -> None:
    graph, norm = join.norm.graph, join.norm
    operator = OPERATORS[norm.target]
    arguments = dict(zip((*operator.parameters, "lowering"), norm.args, strict=True)) | {"front": join.front}
    with graph.inserting_before(norm):
        b = Builder(graph, fake_mode, norm)
        joined = b(operator.overload, *arguments.values())
        alone = b(aten.slice.Tensor, joined, TIME, n.shape(join.front)[TIME], n.shape(join.video)[TIME])
    join.video.replace_all_uses_with(joined)
    norm.replace_all_uses_with(alone)
    for node in (join.video, *join.video.all_input_nodes, norm):
        if not node.users:
            graph.erase_node(node)
