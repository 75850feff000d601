"""The neighbourhood of a site: the nodes that Inductor could fuse with it, cut out of the graph.

    h = addmm(...)                    solid: h enters the cut
    a = x + gate * h                  neighbour
    y = rms_norm(a)                   the site
    z = y * (1 + scale) + shift       neighbours
    q = addmm(z, ...)                 solid: z leaves the cut

It ends at matrix products, convolutions, attention and opaque calls ("solid" nodes), and no path
leads out of it and back: what reads the cut and also waits for it by way of a solid node is left
out. Makers are taken that have as many solid nodes before them (on the longest path) as their
reader, and those that only the cut reads.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._inductor.lowering import fallbacks, lowerings

from rocm_passes.fx import nodes as n
from rocm_passes.policy.bounds import NEIGHBOURS
from rocm_passes.rewrite.extraction import HEAVY
from rocm_passes.rewrite.match import Match
from rocm_passes.rewrite.sources import Sources

#: Namespaces whose operators Inductor lowers to loops; anything else is an opaque call.
FUSIBLE = frozenset({"aten", "prims", "inductor_prims", "_operator"})


class NotCut(Exception):
    """The site has no neighbourhood that can be compiled by itself. The message is the reason."""


@dataclass(frozen=True)
class Neighbourhood:
    """nodes: all that the cut computes, the site's among them, in the graph's order. owned: those
    of which the graph reads the cut's result; the others are views and casts of what enters.
    """

    site: Match
    nodes: list[fx.Node]
    owned: list[fx.Node]
    sources: Sources

    def entering(self) -> list[fx.Node]:
        """The values that the nodes read, and those that the site's replacement reads."""
        inside = set(self.nodes)
        read = [i for node in self.nodes for i in node.all_input_nodes] + self.site.inputs()
        return [i for i in dict.fromkeys(read) if i not in inside]

    def distinct(self) -> list[fx.Node]:
        """One node for each value that enters: copies of one computation enter once."""
        return list(dict.fromkeys(map(self.sources.of, self.entering())))

    def leaving(self) -> list[fx.Node]:
        """The tensors that something outside reads."""
        inside = set(self.nodes)
        return [
            node
            for node in self.owned
            if n.value(node) is not None and any(user not in inside for user in node.users)
        ]


class Neighbourhoods:
    """Of the sites of one graph, which nothing may change meanwhile.

    preserved: ATen operators that are whole now and that Inductor gets decomposed.
    """

    def __init__(self, graph: fx.Graph, preserved: Iterable[str] = ()) -> None:
        self.graph = graph
        self.order = {node: at for at, node in enumerate(graph.nodes)}
        self._kept = {getattr(torch.ops.aten, name) for name in preserved}
        self._sources = Sources(graph)
        self._solid = {node for node in graph.nodes if self._is_solid(node)}
        self._depth: dict[fx.Node, int] = {}
        for node in graph.nodes:
            before = max((self._depth[i] for i in node.all_input_nodes), default=0)
            opaque = node in self._solid and node.target is not operator.getitem
            self._depth[node] = before + int(opaque)

    def of(self, site: Match) -> Neighbourhood:
        """What is computed with the site. Raises NotCut."""
        inside = next((node for node in site.nodes if _is_heavy(node)), None)
        if inside is not None:
            raise NotCut(f"the site holds {inside.name}, which is no pointwise code")
        seeds = {*site.nodes, *site.outputs}
        tries = (self._grown(seeds, deeper) for deeper in (True, False))
        owned = next((found for found in (*tries, seeds) if self._is_convex(found)), None)
        if owned is None:
            raise NotCut("a path leads out of its neighbourhood and back")
        whole = self._with_views(owned, site)
        if len(whole) > NEIGHBOURS.value:
            raise NotCut(f"its neighbourhood has over {NEIGHBOURS.value:g} nodes")
        order = self.order.__getitem__
        return Neighbourhood(
            site, sorted(whole, key=order), sorted(owned & whole, key=order), self._sources
        )

    def _is_solid(self, node: fx.Node) -> bool:
        """No code that Inductor generates loops for. What a solid call gives is solid, too."""
        if node.op != "call_function":
            return True
        if node.target is operator.getitem:
            return self._is_solid(n.argument(node))
        if getattr(node.target, "overloadpacket", None) in self._kept:
            return False
        if not isinstance(node.target, torch._ops.OpOverload) or _is_heavy(node):
            return True
        if node.target.namespace not in FUSIBLE:
            return True
        if node.target.is_view:
            return False
        return node.target in fallbacks or not _is_lowered(node.target)

    def _grown(self, seeds: Collection[fx.Node], deeper: bool) -> set[fx.Node]:
        """What is connected with the seeds by pointwise code. deeper: with readers that have more
        solid nodes before them, but none that waits for the cut.
        """
        found, behind = set(seeds), set[fx.Node]()
        for node in seeds:
            self._reach(node, behind)
        stack = list(seeds)
        while stack and len(found) <= NEIGHBOURS.value:
            node = stack.pop()
            for near in (*node.all_input_nodes, *node.users):
                alike = self._depth[near] == self._depth[node]
                wanted = alike or (deeper and near in node.users)
                if near in found or near in self._solid or near in behind or not wanted:
                    continue
                found.add(near)
                self._reach(near, behind)
                stack.append(near)
        return self._completed(found)

    def _reach(self, node: fx.Node, behind: set[fx.Node]) -> None:
        """Add what waits for the node by way of a solid one."""
        stack = [user for user in node.users if user in self._solid]
        while stack:
            each = stack.pop()
            if each not in behind:
                behind.add(each)
                stack.extend(each.users)

    def _completed(self, found: Collection[fx.Node]) -> set[fx.Node]:
        """With what only the cut reads, and with all results of its calls."""
        whole = set(found)
        stack = list(found)
        while stack and len(whole) <= NEIGHBOURS.value:
            node = stack.pop()
            makers = [m for m in node.all_input_nodes if all(user in whole for user in m.users)]
            items = [u for u in node.users if n.is_call(u, operator.getitem)]
            for near in (*makers, *items):
                if near not in whole and near not in self._solid:
                    whole.add(near)
                    stack.append(near)
        return whole

    def _with_views(self, owned: Collection[fx.Node], site: Match) -> set[fx.Node]:
        """With views and casts of what enters: a value and its view must not enter as two values.
        Inductor computes them anew wherever they are read. So with the calls whose results enter
        one by one.
        """
        whole = set(owned)
        stack = [*owned, *site.inputs()]
        while stack and len(whole) <= NEIGHBOURS.value:
            node = stack.pop()
            for near in (*node.all_input_nodes, node):
                cheap = near.target in n.VIEWS or n.is_cast(near)
                cheap = cheap or (node.target is operator.getitem and near not in self._solid)
                if cheap and near not in whole:
                    whole.add(near)
                    stack.append(near)
        return whole - self._outer_views(whole, site)

    def _outer_views(self, whole: Collection[fx.Node], site: Match) -> set[fx.Node]:
        """Views of what nothing else reads: what they give enters as it is, so that sites which
        differ in such a view alone are one call.
        """
        outer: set[fx.Node] = set()
        wanted, seeds = set(site.inputs()), {*site.nodes, *site.outputs}
        for node in sorted(whole, key=self.order.__getitem__):
            if node in seeds or node.target not in n.VIEWS:
                continue
            base = n.argument(node)
            readers = {user for user in base.users if user in whole} - {node}
            if (base not in whole or base in outer) and not readers and base not in wanted:
                outer.add(node)
        return outer

    def _is_convex(self, found: Collection[fx.Node]) -> bool:
        last = max(self.order[node] for node in found)
        stack = [u for node in found for u in node.users if u not in found]
        seen: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in found:
                return False
            if node in seen or self.order[node] > last:
                continue
            seen.add(node)
            stack.extend(node.users)
        return True


def _is_heavy(node: fx.Node) -> bool:
    """A matrix product, a convolution or attention."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return node.target in HEAVY or name.endswith("_mm") or "attention" in name


def _is_lowered(target: Any) -> bool:
    return target in lowerings or getattr(target, "overloadpacket", None) in lowerings


def moved(site: Match, to: Mapping[fx.Node, fx.Node]) -> Match:
    """The site in a copy of its nodes."""
    return Match(
        anchor=to[site.anchor],
        nodes=frozenset(to[node] for node in site.nodes),
        outputs=tuple(to[node] for node in site.outputs),
        call=site.call.with_nodes(to.__getitem__),
        covers=site.covers,
        parameters=site.parameters,
    )
