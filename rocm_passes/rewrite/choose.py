"""Which lowering a site gets, and the reason in words for a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rocm_passes import policy
from rocm_passes.kernels.triton import launcher
from rocm_passes.ops.operator import Call, Lowering
from rocm_passes.options import Options
from rocm_passes.report.ledger import LEFT, LoweringVerdict, summary
from rocm_passes.rewrite.match import Idiom, Match
from rocm_passes.rewrite.measuring import Measuring
from rocm_passes.target import Target, unmet
from rocm_passes.tuning import checked, sites
from rocm_passes.tuning.consulted import INDUCTOR
from rocm_passes.tuning.sites import Picked
from rocm_passes.tuning.store import Measured


@dataclass(frozen=True)
class Choice:
    """outcome, verdicts and number as in the ledger; lowering is None unless the outcome is
    "rewritten".
    """

    outcome: str
    reason: str
    lowering: Lowering[Any] | None = None
    notes: tuple[str, ...] = ()
    verdicts: tuple[LoweringVerdict, ...] = ()
    error: str = ""
    number: int = 0

    def undone(self, outcome: str, verdict: str, reason: str) -> Choice:
        """The choice once its lowering may not or cannot rewrite the site; that lowering's verdict
        becomes this one.
        """
        assert self.lowering is not None
        name = self.lowering.name
        verdicts = tuple(
            v._replace(verdict=verdict, reason=reason) if v.lowering == name else v
            for v in self.verdicts
        )
        return Choice(outcome, reason, verdicts=verdicts, number=self.number)


def choose(
    idiom: Idiom,
    site: Match,
    target: Target,
    options: Options,
    measuring: Measuring | None = None,
) -> Choice:
    """The lowering for a site, or why none. Every lowering that could be asked has a verdict.

    measuring: whom to ask for times of an idiom that has no measurement of its own.
    """
    asking = _Asking(idiom, site.values(), target, options)
    choice = asking.chosen(site, measuring)
    return replace(choice, verdicts=tuple(asking.said.values()))


@dataclass(frozen=True)
class _Asking:
    """The lowerings of one idiom, asked for one call. said: what each has been told so far."""

    idiom: Idiom
    call: Call
    target: Target
    options: Options
    said: dict[str, LoweringVerdict] = field(default_factory=dict)

    def chosen(self, site: Match, measuring: Measuring | None) -> Choice:
        """By the options; else by a measurement; else by rule."""
        able = self.able()
        if not able:
            return Choice("refused", summary(self.said.values()) or "no lowering exists for it")
        if self.options.select == "off":
            return Choice("kept", f"select='off': it could be rewritten by {able[0].name}")
        forced = self.options.forced_lowering(self.idiom.name)
        if forced is not None:
            return self.taken(able[0], f"lowering {forced!r} was asked for")
        if self.options.select == "always":
            return self.taken(able[0], "select='always'")
        if self.idiom.measured is not None:
            return self.by_own_measurement(able) or self.by_rule(able)
        if measuring is None:
            return self.by_rule(able)
        answer = measuring.ask(self.idiom, site, able)
        if answer.picked is not None:
            return self.by_measurement(able, answer.picked)
        choice = self.by_rule(able)
        return replace(choice, notes=(*choice.notes, *filter(None, [answer.reason])))

    def able(self) -> list[Lowering[Any]]:
        """Those that can take the call here, of the one that is forced or of all."""
        forced = self.options.forced_lowering(self.idiom.name)
        candidates = [low for low in self.idiom.lowerings if forced in (None, low.name)]
        for lowering in candidates:
            self.said[lowering.name] = asked(lowering, self.call, self.target, self.options)
        return [low for low in candidates if self.said[low.name].verdict == "able"]

    def taken(self, lowering: Lowering[Any], reason: str) -> Choice:
        before = self.said[lowering.name]
        self.said[lowering.name] = before._replace(verdict="taken", reason=reason)
        return _taken(lowering, reason, self.call, self.target, self.options)

    def by_own_measurement(self, able: Sequence[Lowering[Any]]) -> Choice | None:
        """By the idiom's own times of its lowerings, or None where there are none."""
        measured = self.idiom.measured
        if measured is None or self.options.select == "rules":
            return None
        found = measured(able, self.call, self.target, self.options)
        if found is None:
            return None
        _figures_of_convolutions(able, found.found, self.said)
        return self.taken(found.lowering, found.reason)

    def by_measurement(self, able: Sequence[Lowering[Any]], picked: Picked) -> Choice:
        """By times of the site with its neighbours. Each lowering's verdict has its figures."""
        choice = Choice("kept", LEFT + picked.reason)
        for lowering in able:
            name, skipped = lowering.name, picked.found.skipped.get(lowering.name)
            if name == picked.name:
                choice = self.taken(lowering, picked.reason)
            elif skipped is not None:
                verdict = "wrong" if skipped.startswith("wrong") else "failed"
                self.said[name] = LoweringVerdict(name, verdict, skipped)
            elif name in picked.found.ms:
                verdict = "able" if picked.name != INDUCTOR else "not_faster"
                self.said[name] = LoweringVerdict(name, verdict, picked.reason)
            figures = sites.verdict(picked.found, name)
            self.said[name] = self.said[name]._replace(measured=figures)
        return choice

    def by_rule(self, able: Sequence[Lowering[Any]]) -> Choice:
        for lowering in able:
            wrong = checked.known(self.call, lowering.name)
            if wrong is not None:
                self.said[lowering.name] = LoweringVerdict(lowering.name, "wrong", wrong)
                continue
            rules = self.idiom.rules
            pays, reason = policy.verdict(rules, lowering.name, self.call, self.target)
            if pays:
                return self.taken(lowering, reason)
            self.said[lowering.name] = LoweringVerdict(lowering.name, "not_faster", reason)
        return Choice("kept", LEFT + summary(self.said.values()))


def _figures_of_convolutions(
    able: Sequence[Lowering[Any]], found: Measured, said: dict[str, LoweringVerdict]
) -> None:
    for name in (low.name for low in able if low.name in found.ms):
        figures = {"ms": found.ms[name], "mib": float(found.mib[name])}
        said[name] = said[name]._replace(measured=figures)


def asked(lowering: Lowering[Any], call: Call, target: Target, options: Options) -> LoweringVerdict:
    """Can the lowering take this call on this machine? "able" where it can."""
    reason = unmet(lowering.requires, target)
    if reason is not None:
        return LoweringVerdict(lowering.name, "unavailable", reason)
    try:
        reason = lowering.refuses(call, target) or _rounds_too_much(lowering, call, target, options)
    except Exception as error:
        reason = f"its check failed: {type(error).__name__}: {error}"
        return LoweringVerdict(lowering.name, "failed", reason)
    if reason is not None:
        return LoweringVerdict(lowering.name, "refused", reason)
    return LoweringVerdict(lowering.name, "able", "")


def _rounds_too_much(
    lowering: Lowering[Any], call: Call, target: Target, options: Options
) -> str | None:
    if options.rewrite_numerics == "fast":
        return None
    inexact = lowering.inexact(call, target)
    if inexact is not None:
        return f"rewrite_numerics='fast' is needed: {inexact}"
    if options.rewrite_numerics != "strict":
        return None
    reason = lowering.note(call, target) or lowering.other_bits(call, target)
    return f"rewrite_numerics='strict': {reason}" if reason else None


def obstacle(lowering: Lowering[Any], call: Call, target: Target, options: Options) -> str | None:
    """Why the lowering can't take this call on this machine, or None where it can."""
    return asked(lowering, call, target, options).reason or None


def _taken(
    lowering: Lowering[Any], reason: str, call: Call, target: Target, options: Options
) -> Choice:
    notes = (
        lowering.inexact(call, target),
        lowering.note(call, target),
        _called(lowering, call, target, options),
    )
    return Choice("rewritten", reason, lowering, tuple(note for note in notes if note))


def _called(lowering: Lowering[Any], call: Call, target: Target, options: Options) -> str | None:
    """A note where Inductor does not launch the kernels, as far as that is known before it asks
    (kernels/triton/inductor.py). It says nothing of how they round: strict numerics do not refuse
    it.
    """
    if lowering.run is None or not target.is_gpu:
        return None
    if not lowering.launches:
        why = "it calls a library"
    elif options.launch == "python":
        why = "launch='python'"
    elif not call.has_numbers():
        why = "its sizes are symbolic"
    else:
        lacking = launcher.lacking()
        if lacking is None:
            return None
        why = f"this torch has no {lacking}"
    return f"an operator call launches it, not Inductor's code: {why}"
