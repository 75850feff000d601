"""Which lowering a site gets, and the reason in words for a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    found: dict[str, LoweringVerdict] = {}
    choice = _choose(idiom, site, target, options, measuring, found)
    return replace(choice, verdicts=tuple(found.values()))


def _choose(
    idiom: Idiom,
    site: Match,
    target: Target,
    options: Options,
    measuring: Measuring | None,
    said: dict[str, LoweringVerdict],
) -> Choice:
    call = site.values()
    forced = options.forced_lowering(idiom.name)
    candidates = [low for low in idiom.lowerings if forced in (None, low.name)]
    for lowering in candidates:
        said[lowering.name] = asked(lowering, call, target, options)
    able = [low for low in candidates if said[low.name].verdict == "able"]
    if not able:
        return Choice("refused", summary(said.values()) or "no lowering exists for it")
    if options.select == "off":
        return Choice("kept", f"select='off': it could be rewritten by {able[0].name}")

    def taken(lowering: Lowering[Any], reason: str) -> Choice:
        before = said[lowering.name]
        said[lowering.name] = before._replace(verdict="taken", reason=reason)
        return _taken(lowering, reason, call, target, options)

    if forced is not None:
        return taken(able[0], f"lowering {forced!r} was asked for")
    if options.select == "always":
        return taken(able[0], "select='always'")
    notes: tuple[str, ...] = ()
    if idiom.measured is not None and options.select != "rules":
        found = idiom.measured(able, call, target, options)
        if found is not None:
            _figures_of_convolutions(able, found.found, said)
            return taken(found.lowering, found.reason)
    elif idiom.measured is None and measuring is not None:
        answer = measuring.ask(idiom, site, able)
        if answer.picked is not None:
            return _measured(answer.picked, able, said, taken)
        notes = (answer.reason,) if answer.reason else ()
    for lowering in able:
        wrong = checked.known(call, lowering.name)
        if wrong is not None:
            said[lowering.name] = LoweringVerdict(lowering.name, "wrong", wrong)
            continue
        pays, reason = policy.verdict(idiom.rules, lowering.name, call, target)
        if pays:
            choice = taken(lowering, reason)
            return replace(choice, notes=(*choice.notes, *notes))
        said[lowering.name] = LoweringVerdict(lowering.name, "not_faster", reason)
    return Choice("kept", LEFT + summary(said.values()), notes=notes)


def _measured(
    picked: Picked,
    able: Sequence[Lowering[Any]],
    said: dict[str, LoweringVerdict],
    taken: Callable[[Lowering[Any], str], Choice],
) -> Choice:
    """By measurement of the site with its neighbours. Each lowering's verdict has its figures."""
    choice = Choice("kept", LEFT + picked.reason)
    for lowering in able:
        name, skipped = lowering.name, picked.found.skipped.get(lowering.name)
        if name == picked.name:
            choice = taken(lowering, picked.reason)
        elif skipped is not None:
            verdict = "wrong" if skipped.startswith("wrong") else "failed"
            said[name] = LoweringVerdict(name, verdict, skipped)
        elif name in picked.found.ms:
            verdict = "able" if picked.name != INDUCTOR else "not_faster"
            said[name] = LoweringVerdict(name, verdict, picked.reason)
        figures = sites.verdict(picked.found, name)
        said[name] = said[name]._replace(measured=figures)
    return choice


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
