"""Can a set of nodes be computed at once, given the sets that are already taken?

Two sets can each be convex and still wait for each other: each reads what the other computes. So
the question is asked on the graph in which every set taken so far is contracted into one node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True)
class _Taken:
    """A contracted set: whoever waits for one of its outputs waits for all of its inputs."""

    outputs: tuple[fx.Node, ...]
    first_output: int
    last_input: int


class Contraction:
    """A graph in which disjoint sets of nodes are contracted one after another.

    The graph's order must be topological when the object is made, and must not change while it is
    used.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self._of: dict[fx.Node, _Taken] = {}
        #: Sets of which an output stands before an input: the only ones that lead back in the
        #: order.
        self._spread: list[_Taken] = []

    def obstacle(
        self, nodes: Collection[fx.Node], inputs: Iterable[fx.Node], outputs: Iterable[fx.Node]
    ) -> str | None:
        """Why the nodes cannot be contracted, in words for a user, or None where they can.

        nodes: the set. inputs: the nodes that its replacement reads. outputs: those of its nodes
        that others read.
        """
        wanted = set(inputs)
        inside = next((node for node in wanted if node in nodes), None)
        if inside is not None:
            return f"it reads a value of its own ({inside.name})"
        limit = self._limit(max((self.order.get(i, -1) for i in wanted), default=-1))
        stack = [user for output in outputs for user in output.users if user not in nodes]
        seen: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in wanted:
                return "one of its inputs is computed from a value inside it"
            taken = self._of.get(node)
            # A contracted set gives all that it gives from its first output on.
            place = self.order.get(node, -1) if taken is None else taken.first_output
            if node in seen or place > limit:
                continue
            seen.add(node)
            stack.extend(node.users)
            if taken is not None and not seen.issuperset(taken.outputs):
                if not wanted.isdisjoint(taken.outputs):
                    return (
                        "one of its inputs is computed by a site that waits for a value inside it"
                    )
                stack.extend(taken.outputs)
        return None

    def contract(
        self, nodes: Iterable[fx.Node], inputs: Iterable[fx.Node], outputs: Iterable[fx.Node]
    ) -> None:
        """Take the set: from now on all of its inputs come before all of its outputs."""
        found, inside = tuple(outputs), set(nodes)
        first = min((self.order.get(o, -1) for o in found), default=-1)
        # The way from an input to the set can lead through a node beside it, which stands behind
        # the input.
        before = {read for node in inside for read in node.all_input_nodes if read not in inside}
        last = max((self.order.get(i, -1) for i in before.union(inputs)), default=-1)
        taken = _Taken(found, first, last)
        for node in inside:
            self._of[node] = taken
        if first < last:
            self._spread.append(taken)

    def _limit(self, last: int) -> int:
        """The place in the order behind which nothing leads back to an input at `last` or before
        it.
        """
        grown = True
        while grown:
            grown = False
            for taken in self._spread:
                if taken.first_output <= last < taken.last_input:
                    last, grown = taken.last_input, True
        return last
