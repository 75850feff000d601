"""Rotary embeddings read off the graph: what is rotated, by which tables, over which part of it.

Whatever the spelling, a rotation is a node both of whose lanes combine both channels of a pair of x
(see linear_forms/):

    out1 = x1 * cos1 - x2 * sin1
    out2 = x2 * cos2 + x1 * sin2
"""

from __future__ import annotations

from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary import linear_forms as lanes
from rocm_passes.idioms.rotary.partial import extend
from rocm_passes.idioms.rotary.rotation import Partial, Rotation
from rocm_passes.idioms.rotary.seeds import seeds
from rocm_passes.ops.rotary_layout import TableEntry

__all__ = ["Partial", "Rotation", "rotations"]


def rotations(graph: fx.Graph) -> list[Rotation]:
    """Every rotation of the graph, in graph order; none of them twice."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, Rotation] = {}
    for node, value, view in seeds(graph):
        for core, rotated, inside in lanes.follow(node, value, order):
            layout = "f" if value.tail in ("f", "pl") else "h"
            if rotated.layout == layout and core not in found:
                found[core] = _rotation(node, view, layout, core, rotated, inside)
    ordered = sorted(found.values(), key=lambda r: order[r.core])
    taken: set[fx.Node] = set()
    kept = []
    for rotation in ordered:
        # x * cos + x' * sin is also a linear form of the tables' channels where those are split
        # alike.
        if not rotation.nodes & taken:
            extend(rotation)
            kept.append(rotation)
            taken |= rotation.nodes
    return kept


def _rotation(
    x: fx.Node,
    view: tuple[Any, ...] | None,
    layout: str,
    core: fx.Node,
    value: lanes.Value,
    inside: set[fx.Node],
) -> Rotation:
    terms = {(lane[0], t.channel): t for lane, found in value.lanes.items() for t in found or ()}
    four = [terms[0, 0], terms[0, 1], terms[1, 1], terms[1, 0]]
    entries = []
    for number, term in enumerate(four):
        assert term.factor is not None
        sign = -term.sign if number == 1 else term.sign
        entries.append(TableEntry(sign, term.factor.axes, term.factor.index, term.factor.part))
    tables = tuple(t.factor.table for t in four if t.factor is not None)
    tail = _tail(core, (*value.lead, 2 * value.pairs))
    rotation = Rotation(
        anchor=core,
        x=x,
        view=view,
        lead=value.lead,
        interleaved=layout == "f",
        width=2 * value.pairs,
        tables=tables,
        entries=tuple(entries),
        core=core,
        tail=tail,
        steps=value.steps,
        complex=any(e.part for e in entries),
        nodes=inside | set(tail),
        fused=value.fused,
        lossy=value.lossy,
        rounds_twice=value.rounded is not None and any(n.is_cast(v) for v in tail),
        scattered=n.is_call(core, aten.slice_scatter.default),
    )
    _drop_shared(rotation)
    return rotation


def _tail(core: fx.Node, flat: tuple[Any, ...]) -> list[fx.Node]:
    """The views that follow the rotation up to its rounding; without one, those that make
    it flat.
    """
    chain: list[fx.Node] = []
    end = 0
    node = n.only_user(core)
    while node is not None:
        if n.is_cast(node) and not n.is_widening(node):
            # A cast to integers or 8 bits stays behind the rotation.
            return [*chain, node] if n.dtype(node) in n.FLOATING else chain[:end]
        if not (node.op == "call_function" and node.target in n.VIEWS):
            break
        chain.append(node)
        if end == 0 and len(chain) == 1 and n.same_shape(n.shape(node), flat):
            end = 1
        node = n.only_user(node)
    return chain[:end]


def _drop_shared(rotation: Rotation) -> None:
    """Take views and casts of x that something else uses too out of `nodes`; note any other
    leak.
    """
    changed = True
    while changed:
        changed = False
        for node in list(rotation.nodes):
            outside = node is not rotation.result and any(
                u not in rotation.nodes for u in node.users
            )
            if not outside:
                continue
            if all(
                i is rotation.x or _only_moves(i, rotation.x) for i in node.all_input_nodes
            ) and (_only_moves(node, rotation.x)):
                rotation.nodes.discard(node)
                changed = True
            else:
                rotation.leak = node


def _only_moves(node: fx.Node, x: fx.Node) -> bool:
    """Does the node hold x's own values, moved or cast?"""
    while node is not x:
        moves = n.is_cast(node) or (
            node.op == "call_function"
            and (node.target in n.VIEWS or node.target in lanes.RULES)
            and len(node.all_input_nodes) == 1
            and node.target is not aten.neg.default
        )
        if not moves:
            return False
        node = node.all_input_nodes[0]
    return True
