"""Frames sliced from videos joined in time are sliced from the piece that they come from.

A causal convolution keeps its last input frames for the next chunk. CogVideoX slices them from the
joined video, which then has a second reader and must be written whole, in the layout of either:

Before                                          After
    v = cat([cache, x], 2)                          v = cat([cache, x], 2)
    y = convolution(v, ...)                         y = convolution(v, ...)
    kept = v[:, :, -2:]                             kept = x[:, :, -2:]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.aliasing import inputs_written, root_of
from rocm_passes.fx.builder import Builder, outputs
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.videos import is_joined_video
from rocm_passes.ops.frames import TIME
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_DID = "frames of a joined video are sliced from the one piece that has them"
_REASON = "they are the same elements"


def slice_before_cat(graph: fx.Graph, fake_mode: FakeTensorMode) -> list[Change]:
    """Redirect the slices beside convolutions of joined videos."""
    changes = []
    returned = Counter(root_of(o) for o in outputs(graph) if isinstance(o, fx.Node))
    # Frames of an input that the graph writes into would be read when they are others already.
    written = inputs_written(graph)
    for cat in n.calls(graph, aten.cat.default):
        if returned[cat] > 1:
            # These outputs share the joined video's memory, and are to share it still.
            continue
        if is_joined_video(cat) and any(n.is_call(u, aten.convolution.default) for u in cat.users):
            changes += [
                change_at(user, _DID, _REASON)
                for user in list(cat.users)
                if _redirected(user, cat, written, fake_mode)
            ]
    return changes


def _redirected(
    user: fx.Node, cat: fx.Node, written: Collection[fx.Node], fake_mode: FakeTensorMode
) -> bool:
    if not n.is_call(user, aten.slice.Tensor):
        return False
    frames = n.shape(cat)[TIME]
    sizes = [n.shape(p)[TIME] for p in cat.args[0]]  # type: ignore[union-attr]
    dim, first, behind, step = n.slice_bounds(frames, user.args[1:])
    if n.normalised_dim(dim, 5) != TIME or step != 1:
        return False
    if not all(isinstance(s, int) for s in (frames, first, behind, *sizes)):
        return False
    found = _piece_of(first, behind, sizes)
    if found is None:
        return False
    which, begin = found
    piece: fx.Node = cat.args[0][which]  # type: ignore
    if root_of(piece) in written:
        return False
    graph = user.graph
    with graph.inserting_before(user):
        b = Builder(graph, fake_mode, user)
        taken = b(aten.slice.Tensor, piece, TIME, first - begin, behind - begin)
    user.replace_all_uses_with(taken)
    graph.erase_node(user)
    return True


def _piece_of(first: int, behind: int, sizes: Sequence[int]) -> tuple[int, int] | None:
    """The piece that holds the frames [first, behind) and where it begins, or None where several
    do.
    """
    begin = 0
    for which, size in enumerate(sizes):
        if begin <= first < behind <= begin + size:
            return which, begin
        begin += size
    return None


def _applies(work: Work) -> bool:
    # On a GPU every conv3d that reads joined videos is rewritten, by rule or by measurement.
    return work.on_gpu and work.may_rewrite and "conv3d" in work.idioms


def _run(work: Work) -> Sequence[Change]:
    return slice_before_cat(work.graph, work.fake_mode)


PASS = WholeGraphPass("slice_before_cat", _run, _applies)
