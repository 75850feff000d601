"""Videos joined in time, as causal convolutions read them: [N, C, T, H, W]."""

from __future__ import annotations

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.ops.frames import TIME

#: The key of a convolution's meta: how many pixels its channels are sorted by.
SORTED_BY = "rocm_passes_channels_sorted_by"


def is_joined_video(node: fx.Node) -> bool:
    """A cat in time of [N, C, T, H, W] tensors of one dtype."""
    return len(n.shape(node)) == 5 and n.joined_dim(node) == TIME


def is_first_frame(node: object, video: fx.Node) -> bool:
    """video[:, :, :1]"""
    if not n.is_call(node, aten.slice.Tensor) or node.args[0] is not video:
        return False
    dim, first, behind, _ = n.slice_bounds(n.shape(video)[TIME], node.args[1:])
    return n.normalised_dim(dim, 5) == TIME and (first, behind) == (0, 1)
