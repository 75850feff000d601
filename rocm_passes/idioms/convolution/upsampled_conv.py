"""A 1x1 or 1x1x1 convolution of nearest-upsampled pixels: computed before the upsampling.

Before (CogVideoX's SpatialNorm3D)              After
    u = cat([index(z[:, :, :1],                     s = z's pixels as rows @ w + bias
                   [None, None, t, h, w]),          y = cat([index(s[:, :, :1],
             index(z[:, :, 1:],                                    [None, None, t, h, w]),
                   [None, None, ...])], 2)                   index(s[:, :, 1:],
    y = convolution(u, w, bias)                                    [None, None, ...])], 2)

A gather of pixels, by whatever indices, commutes exactly with what is computed pixel by pixel; so
do slices and cats over time and space, and casts, which stay before the convolution. Others may use
the upsampled tensor too (CogVideoX returns it as its cache): they keep it. The option conv_dtype
does not reach the small product.

When it pays: from two copies of a pixel on; in a VAE's last block there are 64 and more.

Refused: padding (it is convolved, too); a stride; symbolic sizes; an empty result. No site: gathers
over samples or channels, by masks, or none at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution import pixels
from rocm_passes.ops import upsampled_conv as op
from rocm_passes.ops.upsampled_conv import Moved
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

NAME = "upsampled_conv"
#: By the rank of the input; a conv2d is none of the elementary idioms that the ledger counts.
COVERS: dict[int, dict[str, int]] = {4: {}, 5: {"conv3d": 1}}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for node in n.calls(graph, aten.convolution.default):
        covers = COVERS.get(len(n.shape(node.args[0])))
        transposed = node.args[6]
        if (
            covers is None
            or transposed
            or any(not n.known(k == 1) for k in n.shape(node.args[1])[2:])
        ):
            continue
        moved = pixels.read(n.argument(node))
        if not pixels.repeats(moved):
            continue
        reason = refusal(node, moved)
        yield _site(node, moved, covers) if reason is None else Miss(node, reason, covers)


def _site(node: fx.Node, moved: Moved, covers: dict[str, int]) -> Match:
    x, weight, bias = node.args[:3]
    groups: Any = node.args[8]
    call = op.UpsampledConv(moved, weight, bias, groups, n.shape(x))  # type: ignore[arg-type]
    parameters = {
        "groups": groups,
        "bias": bias is not None,
        "pixels": pixels.pixels(n.argument(node)),
        "source_pixels": pixels.source_pixels(moved),
    }
    return Match(node, frozenset({node}), (node,), call, covers, parameters)


def refusal(node: fx.Node, moved: Moved) -> str | None:
    """Why the convolution cannot be computed before its input's pixels are moved, or None where it
    can.
    """
    stride, padding = node.args[3], node.args[4]
    if any(s != 1 for s in stride):  # type: ignore[union-attr]
        return f"stride={stride}"
    if any(p != 0 for p in padding):  # type: ignore[union-attr]
        return "its padding is convolved, too"
    if not all(
        pixels.sizes_are_known(t)
        for t in (node, n.argument(node), *(p.source for p in moved.pieces))
    ):
        return "its sizes are symbolic"
    return "its result is empty" if 0 in n.shape(node) else None


IDIOM = Idiom(NAME, find, op.UPSAMPLED_CONV.lowerings, fuses=True)
