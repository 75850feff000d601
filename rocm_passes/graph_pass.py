"""The pass over one post-grad graph: prepare, find, choose, rewrite, finish, report."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.pattern_matcher import stable_topological_sort

from rocm_passes.environment import document
from rocm_passes.fx import decompositions
from rocm_passes.fx.builder import fake_mode_of
from rocm_passes.fx.promises import Promises
from rocm_passes.fx.snapshot import Snapshot
from rocm_passes.options import Options
from rocm_passes.policy import layout
from rocm_passes.registry import FINISH, IDIOMS, PREPARE
from rocm_passes.report import drawing
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.changes import Change
from rocm_passes.report.dump import Dump
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite import plan as planning
from rocm_passes.rewrite.cache_key import cache_key, recalled, with_choices
from rocm_passes.rewrite.choose import Choice
from rocm_passes.rewrite.fallback import Attempt
from rocm_passes.rewrite.match import Context, Idiom
from rocm_passes.rewrite.measuring import Measuring
from rocm_passes.rewrite.plan import Decision, Plan
from rocm_passes.rewrite.rewriter import Applied, RewriteError, Rewriter
from rocm_passes.rewrite.validation import Validator
from rocm_passes.rewrite.watch import Watch
from rocm_passes.rewrite.work import WholeGraphPass, Work, kept_promises
from rocm_passes.target import Target
from rocm_passes.tuning import ranks
from rocm_passes.tuning.consulted import Record, keep, recording
from rocm_passes.tuning.ranks import card

log = logging.getLogger(__name__)

_GRAPH_NUMBERS = itertools.count()


class GraphPass(CustomGraphPass):
    """Inductor's post-grad pass of one compile.

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
        self.preserved = tuple(sorted({name for i in self.idioms for name in i.preserves}))
        self._context = Context(options, target)
        self._listener = listener
        self._uuid: str | None = None
        #: What the choices of this pass's graphs depend on, and where it is kept.
        self.asked = Record()
        self._asked_at: str | None = None
        self.published: list[Ledger] = []
        self._handed_on: list[Ledger] = []
        #: Of the Dynamo graph, the same on each rank of a process group; "": not to be compared.
        self.name_on_ranks = ""
        #: Said of the joint graph, for the ledger of the next graph.
        self._training: list[Entry] = []
        self._early: list[Change] = []
        self._early_notes: list[str] = []
        #: Calls of preserved operators that are decomposed before the pass is given their graph.
        self.not_kept: list[str] = []
        #: What the last graph's first calls are to be watched for.
        self.watch: Watch | None = None
        #: The compile that is under way, where it is tried again without rewrites if it fails.
        self.attempt: Attempt | None = None
        self.own_error: BaseException | None = None
        self.changed_early = False

    def uuid(self) -> str:
        if self._uuid is None:
            self._uuid = with_choices(self.static_key(), self.asked)
        return self._uuid

    def static_key(self) -> str:
        """What the pass depends on, less the measurements."""
        return cache_key(self.options, self.target, self.preserved)

    def recall(self, key: str) -> None:
        """Take up what the graph of that key asked of the measurements when it was last
        compiled.
        """
        self._asked_at = key
        self.asked = recalled(key, self.options, self.target)

    def taken_watch(self) -> Watch | None:
        """What the graph that was last passed over leaves to watch, once."""
        watch, self.watch = self.watch, None
        return watch

    def may_rewrite(self, idiom: Idiom | None = None) -> bool:
        """Anything, or that idiom's sites? What prepares a graph for a rewrite must not happen
        where none may.
        """
        looked_for = bool(self.idioms) if idiom is None else idiom in self.idioms
        return (
            looked_for
            and self.options.select != "off"
            and 0 not in (self.options.fuel, self.options.fuel_total)
        )

    def __call__(self, graph: fx.Graph) -> None:
        try:
            self._pass_over(graph)
        except Exception:
            # The graph may compile without the pass.
            if self.attempt is not None:
                self.attempt.failed = True
            raise

    def _pass_over(self, graph: fx.Graph) -> None:
        if self.attempt is not None and self.attempt.given_up:
            # Its ledger has been published, and says why.
            if decompositions.decompose_preserved(graph, self.preserved):
                _tidy(graph)
            return
        started = time.perf_counter()
        work = self._work(graph)
        ledger = work.ledger if work is not None else self._new_ledger()
        dump = Dump(ledger.graph)
        dump.step("before", graph)
        if work is not None:
            before = Snapshot(graph)
            try:
                self._work_through(work, dump, before)
            except Exception as error:
                log.exception("rocm_passes: %s is left as it was", ledger.graph)
                before.restore()
                self._leave(work, f"{type(error).__name__}: {error}")
            if self.attempt is not None:
                self.attempt.add(before, ledger, work.changed)
        elif decompositions.decompose_preserved(graph, self.preserved):
            _tidy(graph)
        dump.step("after", graph)
        ledger.notes += [] if (group := ranks.current()) is None else group.taken_notes()
        ledger.seconds = time.perf_counter() - started
        dump.ledger(ledger)
        self.publish(ledger)

    def _work_through(self, work: Work, dump: Dump, before: Snapshot) -> None:
        graph = work.graph
        promises = Promises(graph, work.fake_mode)
        self._passes(work, PREPARE, dump, before)
        plan = self._decided(work)
        self._rewrite(work, plan)
        dump.step("rewritten", graph)
        self._passes(work, FINISH, dump)
        work.ledger.changed(kept_promises("keep_apart", promises.keep_apart()))
        changed = decompositions.decompose_preserved(graph, self.preserved) > 0
        laid_out = promises.keep_strides(rewritten=work.rewritten > 0)
        work.ledger.changed(kept_promises("keep_strides", laid_out))
        if changed or work.rewritten:
            _tidy(graph)

    def _leave(self, work: Work, reason: str) -> None:
        """The graph is as it was given: nothing is rewritten, and the ledger says so."""
        self.watch = None
        work.changed = False
        if decompositions.decompose_preserved(work.graph, self.preserved):
            _tidy(work.graph)
        said = f"the graph could not be finished, and is as it was: {reason}"
        work.ledger.refuse_rewritten(said, reason)
        work.ledger.notes.append(f"the pass failed: {reason}; nothing is rewritten")

    def _new_ledger(self) -> Ledger:
        ledger = Ledger(
            f"graph{next(_GRAPH_NUMBERS)}", looked_for=tuple(i.name for i in self.idioms)
        )
        if self.options.as_if:
            ledger.notes.append(f"decided as on {self.options.as_if}; no code was generated")
        for name, count in Counter(self.not_kept).items():
            ledger.notes.append(
                f"{name}: {count} of channels-last videos not looked at: on a CPU they lie "
                "otherwise than the operator says, and are left to Inductor"
            )
        self.not_kept.clear()
        while self._training:
            ledger.add(self._training.pop(0))
        ledger.changed(self._early)
        ledger.notes += self._early_notes
        self._early.clear()
        self._early_notes.clear()
        return ledger

    def _work(self, graph: fx.Graph) -> Work | None:
        """None for a graph without tensors."""
        fake_mode = fake_mode_of(graph)
        if fake_mode is None:
            return None
        names = frozenset(i.name for i in self.idioms)
        last = "conv3d" in names and layout.channels_last(graph, self.options, self.target)
        return Work(graph, fake_mode, self._context, self._new_ledger(), names, last)

    def _decided(self, work: Work) -> Plan:
        """Find the matches of every idiom and choose for each; nothing is changed yet."""
        measuring = Measuring(
            work.graph, self.target, self.options, self.preserved, work.channels_last
        )
        plan = Plan(work.graph, self._context, work.ledger, measuring)
        with recording(self.asked):
            for idiom in self.idioms:
                plan.consider(idiom)
            plan.say_the_rest()
        if self._asked_at is not None:
            keep(self._asked_at, self.asked)
        return plan

    def _rewrite(self, work: Work, plan: Plan) -> None:
        """Carry out what was decided. A rewrite that fails or can't be placed is undone alone."""
        strict = self.options.rewrite_numerics == "strict"
        rewriter = Rewriter(work.graph, work.fake_mode, strict)
        validator = Validator(work.graph, self.options, work.ledger)
        placed: list[tuple[Applied, Decision, int]] = []
        # The entries read the graph as the user's code made it: all are written before the first
        # change.
        entries = [plan.entry(d.idiom, d.match, d.choice) for d in plan.decisions]
        for decision, entry in zip(plan.decisions, entries, strict=True):
            lowering = decision.choice.lowering
            if lowering is not None:
                try:
                    applied = rewriter.apply(decision.match, lowering, decision.idiom.operator)
                    placed.append((applied, decision, len(work.ledger.entries)))
                    validator.placed(applied)
                    entry = replace(entry, drawing={**entry.drawing, "after": _drawn(applied)})
                except RewriteError as error:
                    entry = _failed(plan, decision, f"{lowering.name}: {error}")
            work.ledger.add(entry)
        undone = {id(a) for a in rewriter.undo_cycles()}
        for applied, decision, at in placed:
            if id(applied) in undone:
                reason = "with the other rewrites it would form a cycle in the graph"
                work.ledger.entries[at] = _failed(plan, decision, reason)
                continue
            found = validator.validate(applied, work.ledger.entries[at], at)
            if found.wrong:
                rewriter.undo(applied)
                put_back = decision.choice.undone("refused", "wrong", found.wrong)
                work.ledger.entries[at] = plan.entry(decision.idiom, decision.match, put_back)
            else:
                work.entries[applied.results[0]] = at
            work.ledger.entries[at] = replace(work.ledger.entries[at], verification=found.record)
        self.watch = validator.watch
        work.rewritten = rewriter.count
        if work.rewritten:
            work.changed = True
            # What was replaced still reads its inputs, until it is gone.
            _tidy(work.graph)

    def _passes(
        self,
        work: Work,
        passes: Iterable[WholeGraphPass],
        dump: Dump,
        before: Snapshot | None = None,
    ) -> None:
        """Run whole-graph passes. One that fails is taken back with all of its list, and said.

        before: the graph as it is, where that is kept already.
        """
        wanted = [p for p in passes if p.applies(work)]
        before = before or (Snapshot(work.graph) if wanted else None)
        ledger = work.ledger
        entries, changes = list(ledger.entries), len(ledger.changes)
        for each in wanted:
            try:
                made = [replace(change, step=each.name) for change in each.run(work)]
                ledger.changed(made)
                work.changed = work.changed or bool(made)
                dump.step(each.name, work.graph)
            except Exception as error:
                assert before is not None
                log.exception(
                    "rocm_passes: the pass %s failed; the graph is as it was before it", each.name
                )
                before.restore()
                work.entries.clear()
                reason = f"{each.name} failed: {type(error).__name__}: {error}"
                # What the passes before it had said of the sites.
                ledger.entries[:] = entries
                ledger.take_back(reason, since=changes)
                ledger.notes.append(reason)
                return

    def publish(self, ledger: Ledger) -> None:
        """Hand a finished ledger to whoever wants it."""
        # A copy: what is remembered beside the caches has no notes on this run's other ranks.
        self.published.append(replace(ledger, notes=list(ledger.notes)))
        self._handed_on.append(ledger)
        group = ranks.current()
        ledger.notes += self._on_other_ranks(ledger, group)
        ledgers.publish(ledger)
        if self._listener is not None:
            self._listener(ledger)
        self._report(group)

    def published_empty(self) -> Ledger:
        """The ledger of a graph in which nothing was looked for."""
        ledger = self._new_ledger()
        self.publish(ledger)
        return ledger

    def given_up(self, reason: str, error: str) -> None:
        """The whole Dynamo graph is compiled by plain Inductor."""
        for ledger in list(self._handed_on) or [self.published_empty()]:
            self.undone(ledger, reason, error, whole=True)

    def undone(self, ledger: Ledger, reason: str, error: str, whole: bool = False) -> None:
        """The graph of a published ledger is compiled without its rewrites, which failed.

        whole: without what was changed before it was split, too.
        """
        self.watch = None
        ledger.refuse_rewritten(reason, error, whole)
        note = f"the compile failed: {error}; nothing is rewritten"
        for kept in (p for p in self.published if p.entries is ledger.entries):
            kept.notes.append(note)
        ledger.notes.append(note)
        group = ranks.current()
        if group is not None:
            ledger.notes.append(
                f"other ranks than this one ({group.rank}) may have compiled this graph with its "
                "rewrites; its collectives are the same"
            )
        ledgers.amend(ledger)
        Dump(ledger.graph).ledger(ledger)
        self._report(group)

    def _report(self, group: ranks.Ranks | None) -> None:
        if self.options.report:
            path = ledgers.of_rank(self.options.report, 0 if group is None else group.rank)
            ledgers.write_report(path, document(ledgers.history()))

    def _on_other_ranks(self, ledger: Ledger, group: ranks.Ranks | None) -> list[str]:
        """What other ranks have otherwise: notes of this run, not of the graph."""
        if group is None:
            return []
        if self.target.is_gpu:
            group.look_for_other_cards(card(self.target))
        if self.name_on_ranks:
            group.same_graph(f"{self.name_on_ranks} {len(self.published)}", ledger.choices())
        return group.taken_notes()

    def note_early(self, changes: Sequence[Change]) -> None:
        """Changes of the graph before it is split, for the next graph's ledger."""
        self._early += changes
        self.changed_early = self.changed_early or bool(changes)

    def note_early_failure(self, reason: str) -> None:
        """A pass over the graph before it is split failed, and was taken back."""
        self._early_notes.append(reason)

    def note_training(self, graph: fx.Graph) -> None:
        """Sites of the joint graph that stand on kept operators: refused, in the next graph's
        ledger.
        """
        reason = "a training graph has it decomposed, before its backward pass is split off"
        # A decomposed RMSNorm is found again in the forward graph.
        names = (name for name in self.preserved if name != "_fused_rms_norm")
        kept = set(decompositions.nodes_of(graph, names))
        for idiom in self.idioms:
            if idiom.fuses or not idiom.preserves:
                continue
            try:
                found = [f for f in idiom.find(graph, self._context) if f.anchor in kept]
                self._training += [
                    planning.entry(idiom, f, Choice("refused", reason)) for f in found
                ]
            except Exception:
                log.exception("rocm_passes: looking for %s in a training graph failed", idiom.name)


def _drawn(applied: Applied) -> list[drawing.Step]:
    """What a lowering wrote."""
    written = {*applied.builder.inserted, *applied.results}
    names = drawing.named(applied.match.call.arguments())
    return drawing.of(written, applied.results, names)


def _failed(plan: Plan, decision: Decision, reason: str) -> Entry:
    return plan.entry(
        decision.idiom, decision.match, decision.choice.undone("refused", "failed", reason)
    )


def _tidy(graph: fx.Graph) -> None:
    """Drop what died, and restore an order in which every node follows its inputs."""
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
