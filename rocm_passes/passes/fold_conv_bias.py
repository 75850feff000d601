"""A convolution's bias, taken over by the norm that reads the convolution.

On a GPU Inductor adds the bias apart from the convolution, and fuses the sum with what follows. An
opaque norm would leave it a pass over memory of its own: the norm's kernel adds it instead.

Before                                          After
    c = convolution(x, w, bias, ...)                c = convolution(x, w, None, ...)
    y = rocm_passes.channel_norm(c, None, ...)      y = rocm_passes.channel_norm(c, bias, ...)
    r = c + ...                                     r = (c + bias) + ...

Pointwise code may read the convolution, too: Inductor fuses the sum with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, fake_mode_of
from rocm_passes.fx.nodes import aten
from rocm_passes.ops.channel_norm import CHANNEL_NORM
from rocm_passes.ops.group_norm import GROUP_NORM
from rocm_passes.ops.group_norm_pad import GROUP_NORM_PAD
from rocm_passes.ops.operator import Operator
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

#: Norms that can add a bias to their input.
NORMS: tuple[Operator[Any], ...] = (CHANNEL_NORM, GROUP_NORM, GROUP_NORM_PAD)
_BIAS = 2
_REASON = "the sum with the bias is not rounded before the norm reads it, and is in the graph"


def fold_conv_bias(graph: fx.Graph) -> list[Change]:
    """Move the biases into the norms that the passes have written."""
    return [
        change_at(norm, f"{operator.name} adds its convolution's bias", _REASON, "close")
        for operator in NORMS
        for norm in n.calls(graph, operator.overload)
        if operator.lowering_of(norm) == "triton" and _absorb(operator, norm)
    ]


def _absorb(operator: Operator[Any], norm: fx.Node) -> bool:
    call = operator.call_of(norm)
    found = _read(call.x, norm) if call.x_bias is None else None
    if found is None:
        return False
    bias = found.convolution.args[_BIAS]
    if not isinstance(bias, fx.Node) or n.dtype(bias) not in n.FLOATING:
        return False
    if found.others and n.dtype(bias) is not n.dtype(found.read):
        return False
    found.convolution.update_arg(_BIAS, None)
    # The bias may be computed behind the convolution; the order is restored once all rewrites are
    # done.
    operator.update(norm, x_bias=bias)
    _add(found, bias)
    return True


@dataclass(frozen=True)
class _Read:
    """convolution: behind a norm. read: the convolution, or the video that its frames are; others:
    the pointwise code that reads it beside the norm.
    """

    convolution: fx.Node
    read: fx.Node
    others: tuple[fx.Node, ...]


def _read(x: fx.Node, norm: fx.Node) -> _Read | None:
    """The convolution that x is, or whose frames [T, C, H, W] x is as one video.

    ATen's GroupNorm may have it copied into another layout first.
    """
    reader = norm
    while n.is_call(x, aten.clone.default) and n.only_user(x):
        reader, x = x, n.argument(x)
    others = tuple(user for user in x.users if user is not reader)
    if n.reads(reader, x) != 1 or not all(map(_is_pointwise, others)):
        return None
    convolution = _frames_of(x)
    if not n.is_call(convolution, aten.convolution.default):
        return None
    return _Read(convolution, x, others)


def _frames_of(x: fx.Node) -> fx.Node:
    """[T, C, H, W] where x is that as one video, and nothing else reads it; else x."""
    if not n.is_call(x, aten.permute.default) or list(n.arg(x, 1)) != [0, 2, 1, 3, 4]:
        return x
    video = n.argument(x)
    if not n.is_call(video, aten.unsqueeze.default, aten.reshape.default, aten.view.default):
        return x
    frames = n.argument(video)
    one = n.same_shape(n.shape(video), (1, *n.shape(frames)))
    return frames if one and n.only_user(video) and n.only_user(frames) else x


def _is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or n.is_cast(node)


def _add(found: _Read, bias: fx.Node) -> None:
    if not found.others:
        return
    graph, mode = found.read.graph, fake_mode_of(found.read.graph)
    assert mode is not None, "the bias has a value"
    with graph.inserting_before(found.read.next):
        b = Builder(graph, mode, found.convolution)
        shape = [1, -1, *[1] * (n.tensor(found.read).dim() - 2)]
        summed = b(aten.add.Tensor, found.read, b(aten.reshape.default, bias, shape))
    for other in found.others:
        other.replace_input_with(found.read, summed)


def _applies(work: Work) -> bool:
    # The graph rounds a convolution's result behind its bias, and an operator that adds it does
    # not.
    strict = work.context.options.rewrite_numerics == "strict"
    return work.on_gpu and work.rewritten > 0 and not strict


def _run(work: Work) -> Sequence[Change]:
    return fold_conv_bias(work.graph)


PASS = WholeGraphPass("fold_conv_bias", _run, _applies)
