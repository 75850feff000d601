"""The addition behind a convolution, taken over by the Triton convolution that is its one source.

The convolution's result is neither written nor read again: its kernel reads the other summand and
writes the sum. That is fewer bytes and one launch less, wherever the other summand is in memory.

Before                                              After
    y = rocm_passes.implicit_gemm_conv(x, ...)          z = rocm_passes.implicit_gemm_conv(
    z = y + r                                               x, ..., residual=r)

A convolution of 1 frame is a conv2d, with views around it: z = squeeze(y, 2) + r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.collectives import collectives, namespace
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.kernels.aten.memory_format import channels_last
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.ops.operator import NAMESPACE
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

FORCE = prims.inductor_force_stride_order.default
#: Of ATen: what a library writes to memory. A convolution with a bias is not: Inductor adds that
#: apart.
_LIBRARY = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default})

_DID = "the Triton convolution adds the tensor that is added to its result"
_REASON = "the convolution's result is not rounded before the sum"


@dataclass(frozen=True)
class Sum:
    """convolution: the operator's call. result: it, or it without the dim of its 1 frame.
    added: the other summand.
    """

    convolution: fx.Node
    result: fx.Node
    add: fx.Node
    added: fx.Node

    @property
    def of_one_frame(self) -> bool:
        return self.result is not self.convolution


def fold_residual(
    graph: fx.Graph, fake_mode: FakeTensorMode
) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """Give the additions to the convolutions. Returns the results that they were added to; and of
    all others that are added to a tensor, why they keep the addition.
    """
    folded: list[fx.Node] = []
    left: dict[fx.Node, str] = {}
    for convolution in n.calls(graph, IMPLICIT_GEMM_CONV.overload):
        found = _sum(convolution)
        if found is None:
            continue
        reason = _obstacle(found)
        if reason is None:
            folded.append(found.result)
            _fold(found, fake_mode)
        else:
            left[found.result] = reason
    return folded, left


def _sum(convolution: fx.Node) -> Sum | None:
    """The addition that alone reads the convolution, if one does."""
    result = convolution
    user = n.only_user(result)
    if n.is_call(user, aten.squeeze.dim) and n.arg(user, 1) == 2:
        result, user = user, n.only_user(user)
    if not n.is_call(user, aten.add.Tensor):
        return None
    for one, other in n.operands(user):
        if one is result and n.value(other) is not None:
            return Sum(convolution, result, user, other)
    return None


def _obstacle(found: Sum) -> str | None:
    """Why the convolution cannot add the tensor, or what it would cost; None where it can."""
    call, lowering = IMPLICIT_GEMM_CONV.bind(found.convolution.args, found.convolution.kwargs)
    result, add, added = found.result, found.add, found.added
    if lowering != "triton":
        return f"the lowering {lowering!r} adds none"
    if call.residual is not None:
        return "the convolution adds another tensor already"
    if not n.alpha_is_one(add):
        return "a multiple of it is added"
    if not n.same_shape(n.shape(added), n.shape(result)):
        return f"it has shape {tuple(n.shape(added))}, the convolution {tuple(n.shape(result))}"
    if n.dtype(added) is not n.dtype(result) or n.dtype(add) is not n.dtype(result):
        return f"it is {n.dtype(added)}, the convolution {n.dtype(result)}"
    if n.tensor(added).device != n.tensor(result).device:
        return f"it lies on {n.tensor(added).device}"
    if not _in_memory(added, add):
        return "it would have to be written to memory, channels-last, for the convolution alone"
    nodes = (found.convolution, add)
    read = [*found.convolution.all_input_nodes, added]
    return collectives(add.graph).obstacle(nodes, read, (add,))


def _in_memory(added: fx.Node, add: fx.Node) -> bool:
    """Is the tensor written to memory whether or not the addition is Inductor's code, and does it
    lie there as the convolution's result?
    """
    source, seen = added, {added}
    while n.is_call(source, *n.VIEWS, FORCE):
        source = n.argument(source)
        seen.add(source)
    if source.op != "call_function":
        last = torch.channels_last if n.tensor(added).dim() == 4 else torch.channels_last_3d
        return n.tensor(added).is_contiguous(memory_format=last)
    if _is_kernel(source):
        return True
    return any(_is_kernel(user) for node in seen for user in _readers(node) if user is not add)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Its users, through views."""
    for user in node.users:
        yield user
        if n.is_call(user, *n.VIEWS, FORCE):
            yield from _readers(user)


def _is_kernel(node: fx.Node) -> bool:
    """Does it write to memory what it computes, and read from memory?"""
    if n.is_call(node, aten.convolution.default):
        return n.arg(node, 2) is None
    return n.is_call(node, *_LIBRARY) or namespace(node) == NAMESPACE


def _fold(found: Sum, fake_mode: FakeTensorMode) -> None:
    convolution, add = found.convolution, found.add
    with add.graph.inserting_before(add):
        b = Builder(add.graph, fake_mode, convolution)
        residual = channels_last(b, found.added)
        if found.of_one_frame:
            residual = b(aten.unsqueeze.default, residual, 2)
        call = replace(IMPLICIT_GEMM_CONV.call_of(convolution), residual=residual)
        z = IMPLICIT_GEMM_CONV.write(b, call, "triton")
        if found.of_one_frame:
            z = b(aten.squeeze.dim, z, 2)
    add.replace_all_uses_with(z)
    for node in dict.fromkeys((add, found.result, convolution)):
        add.graph.erase_node(node)


def _applies(work: Work) -> bool:
    # The graph rounds the convolution's result before the addition, the kernel does not.
    return work.rewritten > 0 and work.context.options.rewrite_numerics != "strict"


def _run(work: Work) -> Sequence[Change]:
    folded, left = fold_residual(work.graph, work.fake_mode)
    for result in folded:
        work.amend(result, {"adds_residual": True})
    for result, reason in left.items():
        work.amend(result, {}, f"the addition behind it is left to Inductor: {reason}")
    return [change_at(result, _DID, _REASON, "close") for result in folded]


PASS = WholeGraphPass("fold_residual", _run, _applies)
