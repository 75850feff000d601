"""The modulations after a norm, read off the graph.

m = n * (1 + scale) + shift     or (1 + scale) * n, or without a shift; up to two of them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import bind, exactly
from rocm_passes.idioms.norms.reading import Norm
from rocm_passes.idioms.norms.rows import broadcasts, dying, dying_casts, has_shape_of, narrowing

ONE_PLUS = bind("scale") + 1
PRODUCT = exactly("normed") * bind("factor").named("given")
SHIFTED = exactly("product") + bind("shift").named("given")


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
    if (
        product is None
        or not broadcasts(product["given"], normed)
        or not has_shape_of(user, normed)
    ):
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
        or not has_shape_of(total, normed)
        or not broadcasts(found["given"], normed)
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
