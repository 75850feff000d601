"""Frames in front of a norm's result, written where the convolution reads them.

A causal convolution reads the last frames of the chunk before in front of its own. To Inductor a
norm of ours is opaque, and the cat a copy of the whole video:

Before                                          After
    y = rocm_passes.group_norm(x, ...)              v = rocm_passes.group_norm(x, ..., front cache)
    v = cat([cache, y], 2)                          y = v[:, :, 2:]
    z = convolution(v, ...)                         z = convolution(v, ...)
    kept = y[:, :, -2:]                             kept = y[:, :, -2:]

conv3d's lowerings spell the cat over [N, T, H, W, C] where the video is channels-last; both are
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.idioms.convolution.videos import is_first_frame, is_joined_video
from rocm_passes.ops.channel_norm import CHANNEL_NORM
from rocm_passes.ops.frames import CHANNELS_BEHIND, CHANNELS_FIRST, TIME, has_front
from rocm_passes.ops.group_norm import GROUP_NORM
from rocm_passes.ops.operator import Operator
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

NORMS: tuple[Operator[Any], ...] = (CHANNEL_NORM, GROUP_NORM)
OPERATORS = {norm.overload: norm for norm in NORMS}


_DID = "writes its result behind the frames that a cat puts in front of it"
_REASON = "the joined video has the same elements, and is not copied"


@dataclass(frozen=True)
class Join:
    """`front`, or the norm's own first frame so many times, and then its frames: `video` in the
    graph.
    """

    front: fx.Node | None
    repeat_first: int
    norm: fx.Node
    video: fx.Node

    @property
    def frames(self) -> int:
        return int(n.shape(self.video)[TIME] - n.shape(self.norm)[TIME])


@dataclass(frozen=True)
class Left:
    """A norm that ends a joined video and is not written into it, and the reason in words for a
    user.
    """

    norm: fx.Node
    reason: str


def write_into_cat(
    graph: fx.Graph, fake_mode: FakeTensorMode
) -> tuple[dict[fx.Node, int], dict[fx.Node, str]]:
    """Give our norms the frames that a cat puts in front of them. Returns how many, by the norm
    that there was; and of all others that end a joined video, why they do not get them.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    joins: dict[fx.Node, list[Join]] = {}
    left: dict[fx.Node, str] = {}
    for cat in n.calls(graph, aten.cat.default):
        read = _read(cat)
        if isinstance(read, Join):
            joins.setdefault(read.norm, []).append(read)
        elif read is not None:
            left[read.norm] = read.reason
    found = {}
    for norm, of_norm in joins.items():
        reason = _obstacle(norm, of_norm, order)
        if reason is None:
            left.pop(norm, None)
            found[norm] = of_norm[0].frames
            _absorb(of_norm[0], fake_mode)
        else:
            left[norm] = reason
    if found:
        graph.eliminate_dead_code()
    return found, left


def _read(cat: fx.Node) -> Join | Left | None:
    """A cat in time that ends with a norm of ours, in either spelling."""
    video: fx.Node | None = cat
    if is_joined_video(cat):
        pieces = list(n.arg(cat, 0))
    elif len(n.shape(cat)) == 5 and n.joined_dim(cat) == CHANNELS_BEHIND.index(TIME):
        pieces = [p.args[0] if _permutes(p, CHANNELS_BEHIND) else None for p in n.arg(cat, 0)]
        video = n.only_user(cat)
    else:
        return None
    *before, norm = [_through_layout(piece) for piece in pieces]
    if not before or not n.is_call(norm, *OPERATORS):
        return None
    if video is None or (video is not cat and not _permutes(video, CHANNELS_FIRST)):
        return Left(norm, "the video is read with its channels behind")
    if not all(isinstance(size, int) for size in n.shape(video)):
        return Left(norm, "the video's size is not known at compile time")
    if all(is_first_frame(piece, norm) for piece in before):
        return Join(None, len(before), norm, video)
    if len(before) == 1 and isinstance(before[0], fx.Node):
        return Join(before[0], 0, norm, video)
    return Left(norm, f"{len(before)} tensors stand in front of it; its kernel writes behind one")


def _obstacle(norm: fx.Node, joins: list[Join], order: Mapping[fx.Node, int]) -> str | None:
    """Why the norm cannot be written into the video, or None where it can."""
    operator = OPERATORS[norm.target]
    call, lowering = operator.bind(norm.args, norm.kwargs)
    if lowering != "triton":
        return f"the lowering {lowering!r} cannot write there"
    if has_front(call.front, call.repeat_first):
        return "it is written behind others already"
    if len(joins) > 1:
        return f"it goes into {len(joins)} videos, and can be written into one"
    if joins[0].front is not None and order[joins[0].front] > order[norm]:
        return "they are computed after it"
    return None


def _through_layout(node: object) -> object:
    """Our kernels read a tensor as it comes, and write channels-last where it was asked for."""
    while n.is_call(node, prims.inductor_force_stride_order.default):
        node = node.args[0]
    return node


def _permutes(node: object, dims: list[int]) -> bool:
    return n.is_call(node, aten.permute.default) and list(n.arg(node, 1)) == dims


def _absorb(join: Join, fake_mode: FakeTensorMode) -> None:
    graph, norm = join.norm.graph, join.norm
    operator = OPERATORS[norm.target]
    call = replace(operator.call_of(norm), front=join.front, repeat_first=join.repeat_first)
    with graph.inserting_before(norm):
        b = Builder(graph, fake_mode, norm)
        joined = operator.write(b, call, operator.lowering_of(norm))
        alone = b(aten.slice.Tensor, joined, TIME, join.frames, n.shape(join.video)[TIME])
    join.video.replace_all_uses_with(joined)
    norm.replace_all_uses_with(alone)


def _applies(work: Work) -> bool:
    return work.rewritten > 0


def _run(work: Work) -> Sequence[Change]:
    found, left = write_into_cat(work.graph, work.fake_mode)
    for norm, frames in found.items():
        work.amend(norm, {"front_frames": frames})
    for norm, at in list(work.entries.items()):
        reason = left.get(norm)
        if reason is None and norm not in found and work.ledger.entries[at].parameters.get("joins"):
            reason = "the convolution as rewritten reads no joined video that ends with it"
        if reason is not None:
            work.amend(norm, {}, f"not written behind the frames in front of it: {reason}")
    return [
        change_at(norm, f"{OPERATORS[norm.target].name} {_DID}", _REASON, front_frames=frames)
        for norm, frames in found.items()
    ]


PASS = WholeGraphPass("write_into_cat", _run, _applies)
