"""The residual before a norm, read off the graph.

b = gate * y        or y * gate, gate * norm(y), norm(y), y; the gate per sample or per token
s = x + b           rounded to x's dtype where the graph does so
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.patterns import bind
from rocm_passes.idioms.norms.reading import Norm
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.idioms.norms.rows import broadcasts, dying_casts, has_shape_of

SUM = bind("x") + bind("term")
GATED = bind("branch") * bind("gate")


@dataclass
class Residual:
    """s = x + gate * norm?(branch). total: s as it is read later, of dtype sum_dtype.

    rounds: the graph rounds the gate's product or the branch's norm on the way.
    """

    x: fx.Node
    branch: fx.Node
    total: fx.Node
    gate: fx.Node | None = None
    norm: RMS | None = None
    rounds: bool = False
    nodes: set[fx.Node] = field(default_factory=set)


def branch_norms(found: list[Norm]) -> dict[fx.Node, RMS]:
    """The RMSNorms that may stand on a residual's branch, by their result."""
    return {m.result: m for m in found if isinstance(m, RMS)}


def residual(total: fx.Node, branches: Mapping[fx.Node, RMS]) -> Residual | None:
    """The sum that `total` is, perhaps rounded; None where it is none of two tensors of its own
    shape.
    """
    add, nodes = total, {total}
    if n.is_cast(total):
        add = n.argument(total)
        nodes.add(add)
        if len(add.users) != 1 or n.dtype(add) not in n.WIDE:
            return None
    if SUM.match(add) is None or not all(has_shape_of(operand, total) for operand in add.args[:2]):
        return None
    found = [_with_term(x, term, total, add, branches) for x, term in n.operands(add)]
    best = max(found, key=lambda r: (r.norm is not None, r.gate is not None))
    best.nodes |= nodes
    for operand in add.args:
        best.nodes |= dying_casts(operand, best.nodes)
    return best


def _with_term(
    x: fx.Node, term: fx.Node, total: fx.Node, add: fx.Node, branches: Mapping[fx.Node, RMS]
) -> Residual:
    made = Residual(n.through_widening(x), n.through_widening(term), total)
    made.nodes |= dying_casts(term, {add})
    # A norm's own weight is no gate.
    product = None if made.branch in branches else _product(term, total)
    if product is not None:
        made.branch, made.gate, inside = product
        made.nodes |= inside
        made.rounds = any(
            n.dtype(node) in n.LOW_PRECISION for node in inside - dying_casts(term, {add})
        )
    # The norm itself, or the norm widened again for arithmetic in fp32.
    inner = branches.get(made.branch)
    if (
        inner is not None
        and _fits_branch(inner)
        and all(u in made.nodes or u is add for u in inner.result.users)
    ):
        made.norm = inner
        made.branch = inner.x
        made.nodes |= inner.nodes
        rounded = inner.round_to is not None or inner.out_dtype in n.LOW_PRECISION
        made.rounds = made.rounds or rounded or inner.rounds_between
    return made


def _fits_branch(norm: RMS) -> bool:
    """The operator's branch norm has no bias, and one way to guard its root."""
    return norm.bias is None and norm.eps_kind == "add"


def _product(term: fx.Node, total: fx.Node) -> tuple[fx.Node, fx.Node, set[fx.Node]] | None:
    """(branch, gate, nodes) of a product that only the sum reads, perhaps rounded or widened on its
    way there.
    """
    nodes, product = {term}, term
    # Between 16-bit tensors a rounding is one of many; in a sum of float32 tensors it is part of
    # the value.
    is_passed = is_rounding_or_widening if n.dtype(total) in n.LOW_PRECISION else n.is_widening
    while is_passed(product) and n.only_user(product) is not None:
        product = n.argument(product)
        nodes.add(product)
    if GATED.match(product) is None or n.only_user(product) is None:
        return None
    choices = [
        (b, g) for b, g in n.operands(product) if has_shape_of(b, total) and broadcasts(g, total)
    ]
    if not choices:
        return None
    # A gate of x's own shape is one per token: which of the two is the gate makes no difference
    # then.
    branch, gate = min(choices, key=lambda pair: has_shape_of(pair[1], total))
    nodes |= dying_casts(branch, nodes) | dying_casts(gate, nodes)
    return n.through_widening(branch), n.through_widening(gate), nodes


def is_rounding_or_widening(node: object) -> TypeGuard[fx.Node]:
    """A cast between floating dtypes of which no one has 8 bits. Any other cast makes another
    value.
    """
    return n.is_cast(node) and {n.dtype(node), n.dtype(node.args[0])} <= n.FLOATING
