"""Requests for channels-last around our norms and pads, and one request for all readers of a
tensor.

Before                                          After
    y = rocm_passes.group_norm(x, ...)              z = force_stride_order(x, channels-last)
    r = x + ...                                     y = rocm_passes.group_norm(z, ...)
                                                    r = z + ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import aliasing
from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import aten
from rocm_passes.ops.channel_norm import CHANNEL_NORM
from rocm_passes.ops.group_norm import GROUP_NORM
from rocm_passes.ops.group_norm_pad import GROUP_NORM_PAD
from rocm_passes.ops.operator import Operator
from rocm_passes.ops.pad import PAD
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_REASON = "the elements are the same; a kernel may sum them in another order in another layout"
_SHARED = "all readers of a tensor read it in the layout that one of them asked for"
FORCE = n.prims.inductor_force_stride_order.default
#: Operators that work in whatever memory format they are given, and return it.
FOLLOWING: tuple[Operator[Any], ...] = (CHANNEL_NORM, GROUP_NORM)
#: Operators that read any memory format and write the one that the call names.
WRITING: tuple[Operator[Any], ...] = (PAD, GROUP_NORM_PAD)


def settle_norms(graph: fx.Graph, fake_mode: FakeTensorMode) -> list[Change]:
    """Ask for channels-last in front of our norms and pads, in a graph of that layout.

    To Inductor they are opaque: what is computed for them alone it would lay out as eager code
    does, and the norm would carry that layout on to the next convolution.
    """
    following = n.calls(graph, *(operator.overload for operator in FOLLOWING))
    writing = [
        node
        for operator in WRITING
        for node in n.calls(graph, operator.overload)
        if _gains(operator.call_of(node))
    ]
    changes = []
    for node in sorted([*following, *writing]):
        x = n.argument(node)
        sizes_are_known = all(isinstance(size, int) for size in n.shape(x))
        strides = _channels_last(x) if sizes_are_known else None
        if strides is None:
            continue
        for operand in dict.fromkeys(
            a for a in node.all_input_nodes if n.same_shape(n.shape(a), n.shape(x))
        ):
            with graph.inserting_before(node):
                b = Builder(graph, fake_mode, node)
                asked = b(inductor_prims.force_stride_order, _uncopied(operand), strides)
                node.replace_input_with(operand, asked)
        did = f"inputs of {_name(node)} are read in channels-last"
        changes.append(change_at(node, did, _REASON, "close"))
    return changes


def _channels_last(x: fx.Node) -> tuple[Any, ...] | None:
    """The strides of that memory format, which exists for 3 to 5 dims; else None."""
    shape = n.shape(x)
    return tuple(make_channels_last_strides_for(shape)) if 3 <= len(shape) <= 5 else None


def _name(node: fx.Node) -> str:
    return next(each.name for each in (*FOLLOWING, *WRITING) if each.overload is node.target)


def _uncopied(x: fx.Node) -> fx.Node:
    """x before it was copied into another layout: ATen's GroupNorm has a contiguous copy made on a
    GPU.

    Asked for behind the copy, the layout would not be shared with who reads x itself, and x be
    written twice.
    """
    while n.is_call(x, aten.clone.default):
        x = n.argument(x)
    return x


def _gains(call: Any) -> bool:
    """Does it write channels-last what could be made so? The graph's inputs lie as they do."""
    return bool(call.channels_last) and call.x.op != "placeholder"


def share_layouts(graph: fx.Graph) -> list[Change]:
    """Let all that read a tensor read it where it was asked for in a layout.

    Each request is a copy of its own to Inductor, of what is pointwise so far, and who did not ask
    computes it once more from what it was computed from, which stays in memory for that long: a
    convolution's result before its bias.
    """
    changes = []
    first: dict[tuple[fx.Node, tuple[Any, ...]], fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=FORCE):
        x, strides = n.argument(node), tuple(n.arg(node, 1))
        is_so = n.is_call(x, FORCE) and tuple(n.arg(x, 1)) == strides
        alike = x if is_so else first.setdefault((x, strides), node)
        if alike is not node:
            readers = set(node.users)
            node.replace_all_uses_with(alike)
            graph.erase_node(node)
        elif x.op != "placeholder" and strides == _channels_last(x):
            readers = {user for user in x.users if user is not node and user.op != "output"}
            leaving = {user for user in readers if aliasing.is_view_of(user, x)}
            leaving = {user for user in leaving if aliasing.reaches_the_outputs(user)}
            if len(leaving) + any(user.op == "output" for user in x.users) > 1:
                # Outputs that share x's memory go on sharing it.
                readers -= leaving
            x.replace_all_uses_with(node, delete_user_cb=readers.__contains__)
        else:
            continue
        if readers:
            changes.append(change_at(x, _SHARED, _REASON, "close", readers=len(readers)))
    return changes


def _applies(work: Work) -> bool:
    return work.channels_last


def _run(work: Work) -> Sequence[Change]:
    return [*settle_norms(work.graph, work.fake_mode), *share_layouts(work.graph)]


PASS = WholeGraphPass("memory_format", _run, _applies)
