"""The pass over one post-grad graph: find, choose, rewrite, say."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.pattern_matcher import stable_topological_sort

from rocm_passes.fx import decompositions as keep
from rocm_passes.fx import provenance
from rocm_passes.fx.builder import fake_mode_of
from rocm_passes.idioms.convolution import conv3d
from rocm_passes.idioms.convolution.pixels import source_pixels
from rocm_passes.ops.operator import OPERATORS
from rocm_passes.options import Options
from rocm_passes.passes import memory_format as layout
from rocm_passes.passes.fold_conv_bias import fold_conv_bias
from rocm_passes.passes.gather_in_norm import gather_in_norm
from rocm_passes.passes.slice_before_cat import slice_before_cat
from rocm_passes.passes.write_into_cat import write_into_cat
from rocm_passes.registry import IDIOMS
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite.cache_key import cache_key
from rocm_passes.rewrite.choose import Choice, choose
from rocm_passes.rewrite.match import Context, Idiom, Match, Miss
from rocm_passes.rewrite.rewriter import RewriteError, Rewriter, is_convex
from rocm_passes.target import Target

log = logging.getLogger(__name__)

_GRAPH_NUMBERS = itertools.count()


class GraphPass(CustomGraphPass):
    """Inductor's post-grad pass of one compile: find, choose, rewrite, say; then decompose what was kept.

    listener: called with each finished ledger, for `explain`.
    """

    def __init__(
        self,
        options: Options,
        target: Target,
        listener: Callable[[Ledger], None] | None = None,
        idioms: Sequence[Idiom] | None = None,
    ) -> None:
        self.options = options
        self.target = target
        chosen = IDIOMS if idioms is None else idioms
        self.idioms = tuple(i for i in chosen if options.looks_for(i.name))
        self.keep = tuple(sorted({name for i in self.idioms for name in i.keeps}))
        self.runs = 0
        self._listener = listener
        self._uuid: str | None = None
        self._training: list[Entry] = []

    def uuid(self) -> str:
        if self._uuid is None:
            self._uuid = cache_key(self.options, self.target, self.keep)
        return self._uuid

    def may_rewrite(self, idiom: Idiom | None = None) -> bool:
        """Anything, or that idiom's sites? What prepares a graph for a rewrite must not happen where none may."""
        looked_for = bool(self.idioms) if idiom is None else idiom in self.idioms
        return looked_for and self.options.select != "off" and self.options.fuel != 0

    def __call__(self, graph: fx.Graph) -> None:
        started = time.perf_counter()
        self.runs += 1
        ledger = Ledger(f"graph{next(_GRAPH_NUMBERS)}")
        while self._training:
            ledger.add(self._training.pop(0))
        changed = self._rewrite(graph, ledger)
        if keep.decompose_preserved(graph, self.keep):
            changed = True
        if changed:
            _tidy(graph)
        ledger.seconds = time.perf_counter() - started
        ledgers.publish(ledger)
        if self._listener is not None:
            self._listener(ledger)
        if self.options.report:
            from rocm_passes.explain import document

            ledgers.write_json(self.options.report, document(ledgers.history()))

    def note_training(self, graph: fx.Graph) -> None:
        """Sites of the joint graph that stand on kept operators: refused, in the next graph's ledger."""
        reason = "in a training graph it is decomposed before forward and backward are parted"
        # A decomposed RMSNorm is found again in the forward graph.
        kept = set(keep.nodes_of(graph, (name for name in self.keep if name != "_fused_rms_norm")))
        context = Context(self.options, training=True, target=self.target)
        for idiom in self.idioms:
            if idiom.fuses or not idiom.keeps:
                continue
            try:
                found = [f for f in idiom.find(graph, context) if f.anchor in kept]
                self._training += [refused(idiom, f, reason) for f in found]
            except Exception:
                log.exception("rocm_passes: looking for %s in a training graph failed", idiom.name)

    def _rewrite(self, graph: fx.Graph, ledger: Ledger) -> bool:
        fake_mode = fake_mode_of(graph)
        if fake_mode is None:
            return False
        # On a GPU every conv3d that reads joined videos is rewritten, by rule or by measurement.
        if self.target.is_gpu and self.may_rewrite(conv3d.IDIOM):
            slice_before_cat(graph, fake_mode)
            layout.sort_channels(graph, Context(self.options, target=self.target), fake_mode)
        session = _Session(self, graph, ledger)
        for idiom in self.idioms:
            session.decide(idiom)
        rewriter = Rewriter(graph, fake_mode)
        in_channels_last = conv3d.IDIOM in self.idioms and layout.channels_last(graph, session.context)
        for idiom, site, choice in session.decided:
            session.carry_out(rewriter, idiom, site, choice)
        for norm, moved in gather_in_norm(graph, fake_mode).items():
            pixels = {"pixels": math.prod(norm.meta["val"].shape[2:]), "source_pixels": source_pixels(moved)}
            session.amend(norm, pixels)
        if rewriter.count:
            # What was replaced still reads the convolutions, until it is gone.
            _tidy(graph)
            if self.target.is_gpu:
                fold_conv_bias(graph)
            joined, left = write_into_cat(graph, fake_mode)
            for norm, frames in joined.items():
                session.amend(norm, {"front_frames": frames})
            session.note_unjoined(joined, left)
            if self.target.is_gpu:
                _launched(graph, self.options.launch)
        if in_channels_last:
            layout.settle_norms(graph, fake_mode)
            layout.share_layouts(graph)
        return rewriter.count > 0


def _launched(graph: fx.Graph, by: str) -> None:
    """Have Inductor launch the kernels of our operators in the graph, or leave them opaque calls.

    Inductor's lowerings are imported here and not above: the passes of a CPU graph need none of them.
    """
    from rocm_passes.kernels.triton import inductor

    inductor.register()
    for operator in OPERATORS:
        for overload in operator.overloads.values():
            for node in graph.find_nodes(op="call_function", target=overload):
                node.meta[inductor.LAUNCHED_BY] = by


class _Session:
    """One run of the pipeline over one graph."""

    def __init__(self, pipeline: GraphPass, graph: fx.Graph, ledger: Ledger) -> None:
        self.options = pipeline.options
        self.target = pipeline.target
        self.graph = graph
        self.ledger = ledger
        self.decided: list[tuple[Idiom, Match, Choice]] = []
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._taken: dict[fx.Node, tuple[Idiom, Match]] = {}
        self._considered: dict[fx.Node, list[str]] = {}
        self.context = Context(self.options, target=self.target)
        self._fuel = self.options.fuel
        self._entry_of: dict[fx.Node, int] = {}

    def decide(self, idiom: Idiom) -> None:
        """Find the idiom's sites and choose for each; nothing is changed yet."""
        try:
            for found in idiom.find(self.graph, self.context):
                if isinstance(found, Miss):
                    if found.anchor not in self._taken:
                        self._say_refused(idiom, found, found.reason)
                elif self._taken.keys().isdisjoint((found.anchor, *found.nodes)):
                    self._decide_site(idiom, found)
                elif not found.nodes <= self._taken.keys():
                    self._say_cut(idiom, found)
        except Exception as error:
            # A matcher's bug must never break a user's compile: the graph is still untouched.
            log.exception("rocm_passes: looking for %s failed; its sites are left to Inductor", idiom.name)
            anchor = next(iter(self.graph.nodes))
            reason = f"looking for it failed: {type(error).__name__}: {error}"
            self._say_refused(idiom, Miss(anchor, reason, {}), reason)

    def _decide_site(self, idiom: Idiom, site: Match) -> None:
        if not is_convex(site, self._order):
            reason = "one of its inputs is computed from a value inside it"
            self._say_refused(idiom, Miss(site.anchor, reason, site.covers, site.parameters), reason, site)
            return
        choice = choose(idiom, site, self.target, self.options)
        if choice.outcome == "rewritten" and self._fuel is not None:
            if self._fuel == 0:
                choice = Choice("kept", f"fuel={self.options.fuel} is used up")
            else:
                self._fuel -= 1
        if choice.outcome == "rewritten":
            self._taken |= dict.fromkeys(site.nodes, (idiom, site))
        elif idiom.fuses:
            self._note(idiom, site.nodes, choice.reason)
            return
        self.decided.append((idiom, site, choice))

    def _say_refused(self, idiom: Idiom, miss: Miss, reason: str, site: Match | None = None) -> None:
        if idiom.fuses:
            self._note(idiom, site.nodes if site is not None else (miss.anchor,), reason)
            return
        self._record(idiom, miss, Choice("refused", reason), site)

    def _say_cut(self, idiom: Idiom, site: Match) -> None:
        """Say of a site that an earlier one has taken a part of it. (One wholly inside is covered by that one.)

        What the earlier site covers where this one has its anchor is counted there, and not here again.
        """
        left = site.nodes - self._taken.keys()
        counted = site.anchor in self._taken
        taken = site.anchor if counted else min(site.nodes - left, key=self._order.__getitem__)
        by, earlier = self._taken[taken]
        reason = f"{by.name}'s site has taken a part of it"
        if idiom.fuses:
            # Not on the site that was taken: it has not given way to anything.
            self._note(idiom, left, reason)
            return
        already = earlier.covers if counted else {}
        covers = {name: count for name, count in site.covers.items() if name not in already}
        parameters = {**site.parameters, "taken_at": provenance.location(earlier.anchor)}
        cut = replace(site, covers=covers, parameters=parameters)
        self._record(idiom, cut, Choice("refused", reason), cut)

    def _note(self, idiom: Idiom, nodes: Iterable[fx.Node], reason: str) -> None:
        """Note a larger fusion that was not taken on the smaller idioms that have one of these nodes."""
        for node in nodes:
            self._considered.setdefault(node, []).append(f"{idiom.name}: {reason}")

    def carry_out(self, rewriter: Rewriter, idiom: Idiom, site: Match, choice: Choice) -> None:
        # The ledger reads the graph as the user's code made it, so the entry comes before the change.
        entry = self._entry(idiom, site, choice, site)
        if choice.lowering is not None:
            try:
                results = rewriter.apply(site, choice.lowering, idiom.operator)
                self._entry_of[results[0]] = len(self.ledger.entries)
            except RewriteError as error:
                entry = self._entry(idiom, site, Choice("refused", f"{choice.lowering.name}: {error}"), site)
        self.ledger.add(entry)

    def amend(self, result: fx.Node, parameters: Mapping[str, Any], *notes: str) -> None:
        """Add to the parameters and notes of the entry whose lowering made `result`."""
        at = self._entry_of.get(result)
        if at is not None:
            entry = self.ledger.entries[at]
            parameters = {**entry.parameters, **parameters}
            self.ledger.entries[at] = replace(entry, parameters=parameters, notes=(*entry.notes, *notes))

    def note_unjoined(self, joined: Collection[fx.Node], left: Mapping[fx.Node, str]) -> None:
        """Say of norms that end a joined video, now or as the graph came, why they are not written into it."""
        for result, at in self._entry_of.items():
            reason = left.get(result)
            if reason is None and result not in joined and self.ledger.entries[at].parameters.get("joins"):
                reason = "as the convolution was rewritten, no joined video ends with it"
            if reason is not None:
                self.amend(result, {}, f"not written behind the frames in front of it: {reason}")

    def _record(self, idiom: Idiom, found: Match | Miss, choice: Choice, site: Match | None) -> None:
        self.ledger.add(self._entry(idiom, found, choice, site))

    def _entry(self, idiom: Idiom, found: Match | Miss, choice: Choice, site: Match | None) -> Entry:
        inside = site.nodes if site is not None else frozenset({found.anchor})
        considered = dict.fromkeys(c for node in inside for c in self._considered.get(node, ()))
        return Entry(
            idiom=idiom.name,
            covers=found.covers,
            outcome=choice.outcome,
            lowering=choice.lowering.name if choice.lowering else None,
            reason=choice.reason,
            location=provenance.location(found.anchor),
            module=provenance.module(found.anchor),
            parameters=found.parameters,
            inputs=tuple(_describe(i) for i in site.inputs()) if site is not None else (),
            considered=tuple(considered),
            notes=choice.notes,
        )


def refused(idiom: Idiom, found: Match | Miss, reason: str) -> Entry:
    return Entry(
        idiom=idiom.name,
        covers=found.covers,
        outcome="refused",
        lowering=None,
        reason=reason,
        location=provenance.location(found.anchor),
        module=provenance.module(found.anchor),
        parameters=found.parameters,
        inputs=tuple(_describe(i) for i in found.inputs()) if isinstance(found, Match) else (),
    )


def _describe(node: fx.Node) -> dict[str, Any]:
    found = node.meta.get("val")
    if not isinstance(found, torch.Tensor):
        return {"name": node.name, "shape": None, "stride": None, "dtype": type(found).__name__}
    return {
        "name": node.name,
        "shape": list(found.shape),
        "stride": list(found.stride()),
        "dtype": found.dtype,
    }


def _tidy(graph: fx.Graph) -> None:
    """Drop what died, and restore an order in which every node follows its inputs."""
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
