"""A convolution's bias, taken over by the norm that alone reads the convolution.

On a GPU Inductor adds the bias apart from the convolution, and fuses the sum with what follows. An
opaque norm would leave it a pass over memory of its own: the norm's kernel adds it instead.

Before                                          After
    c = convolution(x, w, bias, ...)                c = convolution(x, w, None, ...)
    y = rocm_passes.channel_norm(c, None, ...)      y = rocm_passes.channel_norm(c, bias, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
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
    convolution = _convolution_behind(call.x) if call.x_bias is None else None
    if convolution is None:
        return False
    bias = convolution.args[_BIAS]
    if bias is None or n.dtype(bias) not in n.FLOATING:
        return False
    convolution.args = (*convolution.args[:_BIAS], None, *convolution.args[_BIAS + 1 :])
    # The bias may be computed behind the convolution; the order is restored once all rewrites are
    # done.
    operator.update(norm, x_bias=bias)
    return True


def _convolution_behind(x: fx.Node) -> fx.Node | None:
    """The convolution that x is, or whose frames [T, C, H, W] x is as one video; nothing else may
    read either.

    ATen's GroupNorm may have it copied into another layout first.
    """
    while n.is_call(x, aten.clone.default) and n.only_user(x):
        x = n.arg(x, 0)
    if n.is_call(x, aten.permute.default) and list(x.args[1]) == [0, 2, 1, 3, 4] and n.only_user(x):  # type: ignore[arg-type]
        unsqueezed = n.arg(x, 0)
        if (
            n.is_call(unsqueezed, aten.unsqueeze.default)
            and unsqueezed.args[1] == 0
            and n.only_user(unsqueezed)
        ):
            x = n.arg(unsqueezed, 0)
    if not n.is_call(x, aten.convolution.default) or n.only_user(x) is None:
        return None
    return x


def _applies(work: Work) -> bool:
    # The graph rounds a convolution's result behind its bias, and an operator that adds it does
    # not.
    strict = work.context.options.rewrite_numerics == "strict"
    return work.on_gpu and work.rewritten > 0 and not strict


def _run(work: Work) -> Sequence[Change]:
    return fold_conv_bias(work.graph)


PASS = WholeGraphPass("fold_conv_bias", _run, _applies)
