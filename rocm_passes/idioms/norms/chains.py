"""What stands round a norm, read off the graph: the residual before it and the modulations after
it.

    b = gate * y                    or y * gate, gate * norm(y), norm(y), y; the gate per sample or
                                    per token
    s = x + b                       rounded to x's dtype where the graph does so
    n = norm(s)
    m = n * (1 + scale) + shift     or (1 + scale) * n, or without a shift; up to two of them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import bind, exactly
from rocm_passes.idioms.norms.reading import Norm
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.idioms.norms.rows import dying, dying_casts, narrowing
from rocm_passes.ops.fused_norm import FusedNorm
from rocm_passes.rewrite.rewriter import escapes

SUM = bind("x") + bind("term")
GATED = bind("branch") * bind("gate")
ONE_PLUS = bind("scale") + 1
PRODUCT = exactly("normed") * bind("factor").named("given")
SHIFTED = exactly("product") + bind("shift").named("given")


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


@dataclass
class Modulation:
    """result = norm * (1 + scale) + shift. factor: (1 + scale) as the graph has it; scale is None
    where that is not the sum itself but a view of it.
    """

    result: fx.Node
    factor: fx.Node | None = None
    scale: fx.Node | None = None
    shift: fx.Node | None = None
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
    if SUM.match(add) is None or not all(_full(operand, total) for operand in add.args[:2]):
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
    choices = [(b, g) for b, g in n.operands(product) if _full(b, total) and _table(g, total)]
    if not choices:
        return None
    # A gate of x's own shape is one per token: which of the two is the gate makes no difference
    # then.
    branch, gate = min(choices, key=lambda pair: _full(pair[1], total))
    nodes |= dying_casts(branch, nodes) | dying_casts(gate, nodes)
    return n.through_widening(branch), n.through_widening(gate), nodes


def is_rounding_or_widening(node: object) -> TypeGuard[fx.Node]:
    """A cast between floating dtypes of which no one has 8 bits. Any other cast makes another
    value.
    """
    return n.is_cast(node) and {n.dtype(node), n.dtype(node.args[0])} <= n.FLOATING


def modulations(norm: Norm, inside: frozenset[fx.Node]) -> list[Modulation]:
    """What the uses of a norm's result are: modulations first; then, where there are other uses
    too, the result itself. Empty where none modulates it.

    inside: the nodes of the chain before the modulations, from which no table may be computed.
    """
    found: list[Modulation] = []
    others = False
    for user in norm.result.users:
        made = _modulation(user, norm.result, inside)
        if made is None:
            others = True
        else:
            found.append(made)
    if found and others:
        found.append(Modulation(norm.result))
    return found


def _modulation(user: fx.Node, normed: fx.Node, inside: frozenset[fx.Node]) -> Modulation | None:
    nodes: set[fx.Node] = set()
    value = normed
    if n.is_widening(user):
        following = n.only_user(user)
        if following is None:
            return None
        nodes, value, user = {user}, user, following
    product = PRODUCT.match(user, normed=value)
    if product is None or not _table(product["given"], normed) or not _full(user, normed):
        return None
    factor = product["factor"]
    plus = ONE_PLUS.match(factor)
    if (plus is None and not _views_one_plus(factor)) or _computed_from(factor, inside):
        return None
    made = Modulation(
        user, factor, plus["scale"] if plus is not None else None, nodes=nodes | {user}
    )
    _past_shift(made, normed, inside)
    cast = narrowing(made.result)
    if cast is not None:
        made.result = cast
        made.nodes.add(cast)
    made.nodes |= dying_casts(product["given"], made.nodes)
    if plus is not None:
        made.nodes |= dying({factor}, made.nodes)
    return made


def _past_shift(made: Modulation, normed: fx.Node, inside: frozenset[fx.Node]) -> None:
    total = n.only_user(made.result)
    found = SHIFTED.match(total, product=made.result)
    if (
        total is None
        or found is None
        or not _full(total, normed)
        or not _table(found["given"], normed)
    ):
        return
    if _computed_from(found["shift"], inside):
        return
    made.shift, made.result = found["shift"], total
    made.nodes.add(total)
    made.nodes |= dying_casts(found["given"], made.nodes)


def _computed_from(table: fx.Node, inside: frozenset[fx.Node]) -> bool:
    """Does the table depend on a node of the chain? The chain then ends before it."""
    first, stack, seen = min(inside), [table], set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in inside:
            return True
        if node not in seen and not node < first:
            seen.add(node)
            stack += node.all_input_nodes
    return False


def _views_one_plus(node: Any) -> bool:
    """A view of 1 + s: the modulation is then computed with the sum itself."""
    while (
        n.is_widening(node)
        or n.is_call(node, aten.slice.Tensor)
        or (isinstance(node, fx.Node) and node.target in n.VIEWS)
    ):
        node = node.args[0]
    return ONE_PLUS.match(node) is not None


def _full(node: object, like: fx.Node) -> bool:
    return isinstance(node, fx.Node) and n.same_shape(n.shape(node), n.shape(like))


def _table(node: object, like: fx.Node) -> bool:
    """A floating tensor that broadcasts to the rows."""
    dims, full = n.shape(node), n.shape(like)
    if n.dtype(node) not in n.FLOATING or not 0 < len(dims) <= len(full):
        return False
    tail = full[len(full) - len(dims) :]
    return all(n.same_size(d, 1) or n.same_size(d, t) for d, t in zip(dims, tail, strict=True))


@dataclass
class Chain:
    """A norm with what is taken of its surroundings. norm is None for a sum with a norm on its
    branch.
    """

    norm: Norm | None
    residual: Residual | None = None
    modulations: list[Modulation] = field(default_factory=list)

    @property
    def anchor(self) -> fx.Node:
        if self.norm is not None:
            return self.norm.anchor
        assert self.residual is not None and self.residual.norm is not None
        return self.residual.norm.anchor

    @property
    def nodes(self) -> frozenset[fx.Node]:
        found = set(self.norm.nodes) if self.norm is not None else set()
        if self.residual is not None:
            found |= self.residual.nodes
        for m in self.modulations:
            found |= m.nodes
        return frozenset(found)

    @property
    def keeps_sum(self) -> bool:
        if self.residual is None:
            return False
        return self.norm is None or any(u not in self.nodes for u in self.residual.total.users)

    @property
    def results(self) -> list[fx.Node]:
        if self.norm is None:
            return []
        return [m.result for m in self.modulations] or [self.norm.result]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        total = [self.residual.total] if self.residual is not None and self.keeps_sum else []
        return (*total, *self.results)

    def covers(self) -> dict[str, int]:
        found = {"layer_norm": 0, "rms_norm": 0}
        if self.norm is not None:
            found["rms_norm" if isinstance(self.norm, RMS) else "layer_norm"] += 1
        if self.residual is not None and self.residual.norm is not None:
            found["rms_norm"] += 1
        return {name: count for name, count in found.items() if count}

    def refusal(self) -> str | None:
        """Why one operator cannot compute it, or None where it can."""
        x = (
            self.residual.x
            if self.residual is not None
            else self.norm.x
            if self.norm is not None
            else None
        )
        read = [
            m for m in (self.norm, self.residual.norm if self.residual else None) if m is not None
        ]
        if any(m.compute_dtype is torch.float64 for m in read):
            return "it computes in float64"
        dtypes = [n.dtype(node) for node in (x, *self.outputs)]
        if self.residual is not None:
            dtypes += [n.dtype(self.residual.branch), n.dtype(self.residual.total)]
        if not all(d in n.FLOATING for d in dtypes):
            return f"it reads {dtypes[0]} and gives {', '.join(str(d) for d in dtypes[1:])}"
        if len(self.results) > 2:
            return f"the norm has {len(self.results)} different uses, and two are taken"
        if len({n.dtype(r) for r in self.results}) > 1:
            return "its results have different dtypes"
        outside = escapes(self.nodes, self.outputs)
        if outside is not None:
            return f"an inner value ({outside.name}) is used outside it"
        return None

    def call(self) -> FusedNorm:
        norm, r = self.norm, self.residual
        x = r.x if r is not None else norm.x if norm is not None else None
        assert x is not None
        inner = r.norm if r is not None else None
        none = {"eps_tensor": None, "eps": 0.0}
        inner_eps = inner.eps_arguments() if inner is not None else none
        plain = self.gives_scales
        pairs = [((m.scale if plain else m.factor), m.shift) for m in self.modulations]
        pairs += [(None, None)] * (2 - len(pairs))
        arguments: dict[str, Any] = {
            "x": x,
            "branch": r.branch if r is not None else None,
            "gate": r.gate if r is not None else None,
            "branch_norm": inner is not None,
            "branch_weight": inner.weight if inner is not None else None,
            "branch_weight_offset": inner.weight_offset if inner is not None else 0.0,
            "branch_eps_tensor": inner_eps["eps_tensor"],
            "branch_eps": inner_eps["eps"],
            "sum_dtype": n.dtype(r.total) if r is not None else n.dtype(x),
            "keep_sum": self.keeps_sum,
            "kind": "none" if norm is None else "rms" if isinstance(norm, RMS) else "layer",
            "weight": norm.weight if norm is not None else None,
            "bias": norm.bias if norm is not None else None,
            **(norm.eps_arguments() if norm is not None else none),
            "weight_offset": norm.weight_offset if norm is not None else 0.0,
            "round_to": norm.round_to if norm is not None else None,
            "round_product": norm.round_product if isinstance(norm, RMS) else None,
            "scale0": pairs[0][0],
            "shift0": pairs[0][1],
            "scale1": pairs[1][0],
            "shift1": pairs[1][1],
            "scale_offset": 1.0 if plain else 0.0,
            "outputs": len(self.results),
            "out_dtype": n.dtype(self.results[0]) if self.results else n.dtype(x),
            "rounds_between": self.rounds_between,
            "eps_kind": norm.eps_kind if isinstance(norm, RMS) else "add",
        }
        return FusedNorm(**arguments)

    @property
    def rounds_between(self) -> bool:
        """Does the graph round a value that the operator does not?"""
        if (self.residual is not None and self.residual.rounds) or self.norm is None:
            return self.residual is not None and self.residual.rounds
        if self.norm.rounds_between:
            return True
        factors = [m.factor for m in self.modulations if m.factor is not None]
        summed = [m.factor for m in self.modulations if m.scale is not None]
        normed = bool(factors) and self.norm.out_dtype in n.LOW_PRECISION
        # 1 + scale is rounded where it is a 16-bit sum; the operator adds in fp32.
        return normed or (self.gives_scales and any(n.dtype(f) in n.LOW_PRECISION for f in summed))

    @property
    def gives_scales(self) -> bool:
        """One offset serves both modulations: with any factor that is no plain 1 + scale, all are
        given whole.
        """
        return all(m.factor is None or m.scale is not None for m in self.modulations)

    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.norm.parameters()) if self.norm is not None else {}
        if self.residual is not None:
            found["gate"] = (
                list(n.shape(self.residual.gate)) if self.residual.gate is not None else None
            )
            found["sum_dtype"] = n.dtype(self.residual.total)
            found["sum_used_elsewhere"] = self.keeps_sum
            inner = self.residual.norm
            found["branch_norm"] = inner is not None
            if inner is not None:
                found["branch_weight_offset"] = inner.weight_offset
        if self.modulations:
            found["modulations"] = len(self.modulations)
            found["shift"] = any(m.shift is not None for m in self.modulations)
        return found
