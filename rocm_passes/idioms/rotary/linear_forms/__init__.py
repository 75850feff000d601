"""Values of a graph as linear forms in the two channels of a pair: rotations whatever their
spelling.

A tensor x [..., 2P] holds P pairs of channels, interleaved (2i, 2i+1) or half-split (i, i+P).
Starting from x, every node that is a sum of (plus or minus channel 0 or 1 of x) * (an entry of a
table) is followed, through views, casts, stacks, slices, scatters and complex numbers. Which node
is a rotation can then be seen from its value alone: both of its lanes hold a term of channel 0 and
a term of channel 1.

The last axes of a value are named by a letter each:
    p  pairs            l  lane: the channel within the pair            1  size one
    f  interleaved channels [2P]      h  half-split channels [2P]       z  pairs as complex numbers
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary.linear_forms.arithmetic import ARITHMETIC
from rocm_passes.idioms.rotary.linear_forms.moves import MOVES, lane_of_bounds
from rocm_passes.idioms.rotary.linear_forms.rounding import with_rounding
from rocm_passes.idioms.rotary.linear_forms.value import Evaluated, Factor, Rule, Term, Value, start

__all__ = [
    "RULES",
    "Factor",
    "Term",
    "Value",
    "evaluate",
    "follow",
    "lane_of_bounds",
    "start",
]

#: By target: a node's value from those of its inputs.
RULES: dict[Any, Rule] = {**MOVES, **ARITHMETIC}
#: What rounds: a sign does not.
_ROUNDS = frozenset(ARITHMETIC) - {aten.neg.default}


def follow(
    x: fx.Node, value: Value, order: Mapping[fx.Node, int]
) -> Iterator[tuple[fx.Node, Value, set[fx.Node]]]:
    """Every rotation of x: its node, its value, and the nodes between x and it."""
    known: dict[fx.Node, Evaluated] = {x: value}
    queue = [(order[u], u) for u in x.users if u in order]
    heapq.heapify(queue)
    seen: set[fx.Node] = set()
    while queue:
        _, node = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        found = evaluate(node, known)
        if found is None:
            continue
        known[node] = found
        if isinstance(found, Value) and found.complete:
            yield node, found, _between(node, x, known)
            continue
        for user in node.users:
            if user in order:
                heapq.heappush(queue, (order[user], user))


def _between(result: fx.Node, x: fx.Node, known: Mapping[fx.Node, Any]) -> set[fx.Node]:
    inside, stack = {result}, [result]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node is not x and node in known and node not in inside:
                inside.add(node)
                stack.append(node)
    return inside


def evaluate(node: fx.Node, known: Mapping[fx.Node, Evaluated]) -> Evaluated | None:
    """The node's value from its inputs', or None where it is no linear form of the channels."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is None:
        return None
    found = rule(node, known)
    return with_rounding(node, found, known, _ROUNDS) if isinstance(found, Value) else found
