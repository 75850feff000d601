"""A convolution's bias, taken over by the norm that alone reads the convolution.

On a GPU Inductor adds the bias apart from the convolution, and fuses the sum with what follows. An opaque norm
would leave it a pass over memory of its own: the norm's kernel adds it instead.

Before                                          After
    c = convolution(x, w, bias, ...)                c = convolution(x, w, None, ...)
    y = rocm_passes.channel_norm(c, None, ...)      y = rocm_passes.channel_norm(c, bias, ...)
"""

from __future__ import annotations

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops import channel_norm, group_norm
from . import nodes as n
from .builder import Builder
from .nodes import aten

_X, _X_BIAS = 0, 1
_BIAS = 2


def absorb_biases(graph: fx.Graph, fake_mode: FakeTensorMode) -> int:
    """Move the biases into the norms that the passes have written. Returns how many."""
    moved = 0
    for operator in (channel_norm.OPERATOR, group_norm.OPERATOR):
        for norm in n.calls(graph, operator.overload):
            if norm.args[-1] == "triton" and norm.args[_X_BIAS] is None:
                moved += _absorb(graph, fake_mode, norm)
    return moved


def _absorb(graph: fx.Graph, fake_mode: FakeTensorMode, norm: fx.Node) -> bool:
    convolution = n.arg(norm, _X)
    if not n.is_call(convolution, aten.convolution.default) or len(convolution.users) != 1:
        return False
    bias = convolution.args[_BIAS]
    if bias is None or n.dtype(bias) not in n.FLOATING:
        return False
    b = Builder(graph, fake_mode, convolution)
    arguments = list(convolution.args)
    arguments[_BIAS] = None
    with graph.inserting_before(convolution):
        plain = b(aten.convolution.default, *arguments)
    norm.args = (plain, bias, *norm.args[_X_BIAS + 1 :])
    graph.erase_node(convolution)
    return True
