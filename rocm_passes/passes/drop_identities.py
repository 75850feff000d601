"""Products and quotients by one, whose readers read what stands before them.

Diffusers divides each attention's and each ResNet's result by a factor that is 1.0 in most models.
Inductor computes it in the kernel that adds the residual; in front of an opaque norm it would be a
pass over memory of its own.

Before                              After
    y = div(x, 1.0)                     s = add(y -> x, residual)
    s = add(y, residual)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from rocm_passes.fx import aliasing
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.strides import same_strides, sees_strides
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_SIGNS = {
    aten.div.Tensor: "/",
    aten.mul.Tensor: "*",
    aten.div.Scalar: "/",
    aten.mul.Scalar: "*",
}


def drop_identities(graph: fx.Graph) -> list[Change]:
    """Let readers of x / 1 read x. What nothing reads any more is gone: as dead code it would count
    among the readers of x.
    """
    changes = []
    for node in list(graph.nodes):
        if not is_identity(node):
            continue
        readers = [user for user in node.users if _computes(user)]
        for user in readers:
            user.replace_input_with(node, n.arg(node, 0))
        if readers:
            did = f"x {_SIGNS[node.target]} 1 is read as x"
            reason = "it is x to the bit, in x's dtype and memory layout"
            changes.append(change_at(node, did, reason, readers=len(readers)))
        if not node.users:
            graph.erase_node(node)
    return changes


def is_identity(node: fx.Node) -> bool:
    """x * 1 or x / 1 with x's dtype and layout: to the bit x, zeros' signs and infinities too."""
    if node.op != "call_function" or node.target not in _SIGNS or node.kwargs:
        return False
    x, one = node.args[:2]
    if not n.is_scalar(one) or one != 1:
        return False
    before, after = n.value(x), n.value(node)
    return (
        before is not None
        and after is not None
        and before.dtype == after.dtype
        and same_strides(before, after)
    )


def _computes(user: fx.Node) -> bool:
    """Does it read values alone, and is its result memory of its own? An output, or a view that may
    become one, must not share memory with x where the graph has a tensor apart.
    """
    if sees_strides(user) or not isinstance(user.target, torch._ops.OpOverload):
        return False
    schema = user.target._schema
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    return not aliases and aliasing.root_of(user) is user


def _applies(work: Work) -> bool:
    return work.may_rewrite


def _run(work: Work) -> Sequence[Change]:
    return drop_identities(work.graph)


PASS = WholeGraphPass("drop_identities", _run, _applies)
