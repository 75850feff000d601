"""Reading the padding in front of a conv3d off the graph: zeros round the frames, pieces of video
in time.

    x = cat([cache, x], 2)                              pieces (cache, x)
    x = constant_pad_nd(x, [W, W, H, H, front, back])   zeros (front, back); H and W become the
                                                        convolution's own padding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.videos import is_first_frame, is_joined_video


@dataclass
class Padded:
    """What a convolution reads: pieces end to end in time, zero frames around them, zeros (H, W)
    outside.

    nodes: the pads and cats that are no longer needed.
    """

    pieces: list[fx.Node]
    front: int
    back: int
    padding: tuple[int, int]
    nodes: set[fx.Node]

    @property
    def absorbed(self) -> bool:
        return bool(self.nodes)


def read(x: fx.Node, padding: tuple[int, ...]) -> Padded:
    """The input of a convolution with its own zero `padding` (T, H, W), read through pads
    and cats.
    """
    found = Padded([x], padding[0], padding[0], (padding[1], padding[2]), set())
    while _absorb_pad(found):
        pass
    while _absorb_cat(found):
        pass
    _drop_zero_pieces(found)
    return found


def halo(pieces: Sequence[fx.Node]) -> str:
    """Rows or columns of neighbours that stand beside a piece, as a spatially parallel decode
    exchanges them, and what becomes of them; empty where there are none.
    """
    for piece in pieces:
        axis = {3: "height", 4: "width"}.get(n.joined_dim(piece) or 0)
        if axis is not None:
            count = len(n.arg(piece, 0))
            return (
                f"{count} tensors joined along the {axis} are copied together before the "
                "convolution: no lowering reads rows or columns from several tensors"
            )
    return ""


def _absorb_pad(found: Padded) -> bool:
    (x,) = found.pieces
    if not n.is_call(x, aten.constant_pad_nd.default) or n.only_user(x) is None:
        return False
    pads = x.args[1]
    value = x.args[2] if len(x.args) > 2 else x.kwargs.get("value", 0)
    if value != 0 or not isinstance(pads, (list, tuple)) or len(pads) > 6:
        return False
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        return False
    sizes: list[Any] = [*pads, *[0] * (6 - len(pads))]
    left, right, top, bottom, front, back = sizes
    if left != right or top != bottom:
        return False
    source = n.argument(x)
    found.pieces[:] = [source]
    found.front += front
    found.back += back
    found.padding = (found.padding[0] + top, found.padding[1] + left)
    found.nodes.add(x)
    return True


def _absorb_cat(found: Padded) -> bool:
    for i, piece in enumerate(found.pieces):
        if is_joined_video(piece) and n.only_user(piece) is not None:
            found.pieces[i : i + 1] = list(piece.args[0])  # type: ignore[arg-type]
            found.nodes.add(piece)
            return True
    return False


def _drop_zero_pieces(found: Padded) -> None:
    """Pieces that are zeros by construction become zero frames."""
    while len(found.pieces) > 1 and (count := _zero_frames(found.pieces[0])):
        found.pieces.pop(0)
        found.front += count
    while len(found.pieces) > 1 and (count := _zero_frames(found.pieces[-1])):
        found.pieces.pop()
        found.back += count


def stands_behind_frames(y: fx.Node) -> bool:
    """Is y the last piece of one joined video, behind one other or its own first frames, zeros
    apart?

    (Of two videos, it could be written into neither.)
    """
    cats = [user for user in y.users if is_joined_video(user) and n.arg(user, 0)[-1] is y]
    if len(cats) != 1:
        return False
    front = [piece for piece in n.arg(cats[0], 0)[:-1] if not _zero_frames(piece)]
    return len(front) == 1 or (bool(front) and all(is_first_frame(piece, y) for piece in front))


def _zero_frames(node: fx.Node) -> int:
    """How many frames of zeros the node is, 0 where it isn't known to be zeros."""
    filled = n.is_call(node, aten.full.default) and node.args[1] == 0
    like = n.is_call(node, aten.full_like.default) and node.args[1] == 0
    zeros = n.is_call(node, aten.zeros.default, aten.zeros_like.default)
    count = n.shape(node)[2] if filled or like or zeros else 0
    return count if isinstance(count, int) else 0
