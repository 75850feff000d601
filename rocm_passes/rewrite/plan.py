"""Deciding, match by match, what will be rewritten; nothing is changed yet, and every candidate
gets an entry.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import provenance
from rocm_passes.fx.collectives import collectives
from rocm_passes.fx.convexity import Contraction
from rocm_passes.report import drawing
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite.choose import Choice, choose
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss
from rocm_passes.rewrite.measuring import Measuring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    idiom: Idiom
    match: Match
    choice: Choice


class _Fuel:
    """The rewrites of this process, counted over all its graphs."""

    def __init__(self) -> None:
        self.used = 0
        self._lock = threading.Lock()

    def take(self, total: int) -> int | None:
        """The number of one more rewrite, from 1, or None where there have been `total`."""
        with self._lock:
            if self.used >= total:
                return None
            self.used += 1
            return self.used


PROCESS = _Fuel()


class Plan:
    """What will become of one graph's matches. Idioms are considered in order: an earlier one takes
    its nodes.
    """

    def __init__(
        self,
        graph: fx.Graph,
        context: Context,
        ledger: Ledger,
        measuring: Measuring | None = None,
    ) -> None:
        self.decisions: list[Decision] = []
        self._graph = graph
        self._context = context
        self._ledger = ledger
        self._contraction = Contraction(graph)
        self._measuring = measuring
        self._collectives = context.read_once(graph, collectives)
        self._taken: dict[fx.Node, tuple[Idiom, Match]] = {}
        self._considered: dict[fx.Node, list[str]] = {}
        #: Larger fusions that were not taken, and the nodes that have an entry without them.
        self._untaken: list[tuple[Idiom, Found, Choice]] = []
        self._with_entry: set[fx.Node] = set()
        self._fuel = context.options.fuel

    def consider(self, idiom: Idiom) -> None:
        """Find the idiom's matches and decide each. An exception costs the match that it comes
        from.
        """
        for found in self._found(idiom):
            try:
                self._decide(idiom, found)
            except Exception as error:
                log.exception("rocm_passes: deciding on %s at %s failed", idiom.name, found.anchor)
                self._fail(idiom, found, "deciding on it failed", error)

    def say_the_rest(self) -> None:
        """An entry for each larger fusion that was not taken and has no part in a smaller site,
        where it would be noted. To be called when all idioms have been considered.
        """
        for idiom, found, choice in self._untaken:
            if self._with_entry.isdisjoint(_nodes(found)):
                self._with_entry.update(_nodes(found))
                self._ledger.add(entry(idiom, found, choice))

    def _found(self, idiom: Idiom) -> Iterator[Found]:
        """Matches and misses. A finder that raises ends: what it had found before stands."""
        try:
            yield from idiom.find(self._graph, self._context)
        except Exception as error:
            # A matcher's bug must never break a user's compile: the graph is still untouched.
            log.exception(
                "rocm_passes: looking for %s failed; the rest is left to Inductor", idiom.name
            )
            anchor = next(iter(self._graph.nodes))
            self._fail(idiom, Miss(anchor, "", {}), "looking for it failed", error)

    def _decide(self, idiom: Idiom, found: Found) -> None:
        if isinstance(found, Miss):
            if found.anchor not in self._taken:
                self._refuse(idiom, found, found.reason)
        elif self._taken.keys().isdisjoint((found.anchor, *found.nodes)):
            self._decide_match(idiom, found)
        elif not found.nodes <= self._taken.keys():
            self._say_cut(idiom, found)

    def _decide_match(self, idiom: Idiom, match: Match) -> None:
        place = (match.nodes, match.inputs(), match.outputs)
        obstacle = match.obstacle(self._contraction) or self._collectives.obstacle(*place)
        if obstacle is not None:
            self._refuse(idiom, match, obstacle)
            return
        target, options = self._context.target, self._context.options
        choice = self._fuelled(choose(idiom, match, target, options, self._measuring))
        if choice.outcome == "rewritten":
            self._taken |= dict.fromkeys(match.nodes, (idiom, match))
            self._contraction.contract(match.nodes, match.inputs(), match.outputs)
        elif idiom.fuses:
            self._leave(idiom, match, choice)
            return
        self._with_entry.update(match.nodes)
        self.decisions.append(Decision(idiom, match, choice))

    def _fuelled(self, choice: Choice) -> Choice:
        if choice.outcome != "rewritten":
            return choice
        if self._fuel == 0:
            return choice.undone("kept", "able", f"fuel={self._context.options.fuel} is used up")
        total = self._context.options.fuel_total
        if total is not None:
            number = PROCESS.take(total)
            if number is None:
                return choice.undone("kept", "able", f"fuel_total={total} is used up")
            choice = replace(choice, number=number)
        if self._fuel is not None:
            self._fuel -= 1
        return choice

    def _refuse(self, idiom: Idiom, found: Found, reason: str) -> None:
        choice = Choice("refused", reason)
        if idiom.fuses:
            self._leave(idiom, found, choice)
        else:
            self._with_entry.update(_nodes(found))
            self._ledger.add(self.entry(idiom, found, choice))

    def _leave(self, idiom: Idiom, found: Found, choice: Choice) -> None:
        """A larger fusion that is not taken is noted on the smaller sites in it, if there are
        any.
        """
        self._untaken.append((idiom, found, choice))
        self._note(idiom, _nodes(found), choice.reason)

    def _fail(self, idiom: Idiom, found: Found, what: str, error: Exception) -> None:
        """An entry for a fault of this package. It stands alone, also where the idiom is a
        fusion.
        """
        reason = f"{what}: {type(error).__name__}: {error}"
        self._ledger.add(self.entry(idiom, found, Choice("refused", reason, error=repr(error))))

    def _say_cut(self, idiom: Idiom, match: Match) -> None:
        """Say of a match that an earlier one has taken a part of it. (One wholly inside is covered
        by that one.)

        What the earlier one covers where this one has its anchor is counted there, and not here
        again.
        """
        left = match.nodes - self._taken.keys()
        counted = match.anchor in self._taken
        order = self._contraction.order
        taken = match.anchor if counted else min(match.nodes - left, key=order.__getitem__)
        by, earlier = self._taken[taken]
        reason = f"{by.name}'s site has taken a part of it"
        if idiom.fuses:
            # Not on the site that was taken: it has not given way to anything.
            self._note(idiom, left, reason)
            return
        already = earlier.covers if counted else {}
        covers = {name: count for name, count in match.covers.items() if name not in already}
        parameters = {**match.parameters, "taken_at": provenance.location(earlier.anchor)}
        cut = replace(match, covers=covers, parameters=parameters)
        self._with_entry.update(left)
        self._ledger.add(self.entry(idiom, cut, Choice("refused", reason)))

    def _note(self, idiom: Idiom, nodes: Iterable[fx.Node], reason: str) -> None:
        """Note a larger fusion that was not taken on the smaller idioms that have one of these
        nodes.
        """
        for node in nodes:
            self._considered.setdefault(node, []).append(f"{idiom.name}: {reason}")

    def entry(self, idiom: Idiom, found: Found, choice: Choice) -> Entry:
        considered = dict.fromkeys(
            c for node in _nodes(found) for c in self._considered.get(node, ())
        )
        return entry(idiom, found, choice, tuple(considered))


def _nodes(found: Found) -> Collection[fx.Node]:
    return found.nodes if isinstance(found, Match) else (found.anchor,)


def entry(idiom: Idiom, found: Found, choice: Choice, considered: tuple[str, ...] = ()) -> Entry:
    """The ledger's entry of a match or a miss, read off the graph as the user's code made it."""
    return Entry(
        idiom=idiom.name,
        covers=found.covers,
        outcome=choice.outcome,
        lowering=choice.lowering.name if choice.lowering else None,
        reason=choice.reason,
        location=provenance.location(found.anchor),
        module=provenance.module(found.anchor),
        parameters=found.parameters,
        inputs=tuple(_describe(i) for i in found.inputs()) if isinstance(found, Match) else (),
        considered=considered,
        notes=choice.notes,
        verdicts=choice.verdicts,
        error=choice.error,
        number=choice.number,
        component=provenance.component(found.anchor),
        bytes=_moved(found) if isinstance(found, Match) else None,
        drawing={"before": _drawn(found)},
    )


def _drawn(found: Found) -> list[drawing.Step]:
    """A match's nodes; of a miss, the node that it was about and what that reads."""
    if isinstance(found, Match):
        return drawing.of(found.nodes, found.outputs, drawing.named(found.call.arguments()))
    return drawing.of({found.anchor, *found.anchor.all_input_nodes}, (found.anchor,))


def _moved(match: Match) -> int | None:
    """Bytes of the inputs and the outputs, each counted once."""
    values = [node.meta.get("val") for node in (*match.inputs(), *match.outputs)]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if not all(isinstance(size, int) for t in tensors for size in t.shape):
        return None
    return sum(t.numel() * t.element_size() for t in tensors)


def _describe(node: fx.Node) -> Mapping[str, Any]:
    found = node.meta.get("val")
    if not isinstance(found, torch.Tensor):
        return {"name": node.name, "shape": None, "stride": None, "dtype": type(found).__name__}
    return {
        "name": node.name,
        "shape": list(found.shape),
        "stride": list(found.stride()),
        "dtype": found.dtype,
    }
