"""Which lowering a site gets, and the reason in words for a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rocm_passes.ops.operator import Call, Lowering
from rocm_passes.options import Options
from rocm_passes.rewrite.match import Idiom, Match
from rocm_passes.target import Target, unmet


@dataclass(frozen=True)
class Choice:
    """outcome as in the ledger; lowering is None unless the outcome is "rewritten"."""

    outcome: str
    reason: str
    lowering: Lowering[Any] | None = None
    notes: tuple[str, ...] = ()


def choose(idiom: Idiom, site: Match, target: Target, options: Options) -> Choice:
    call = site.values()
    forced = options.forced_lowering(idiom.name)
    candidates = [low for low in idiom.lowerings if forced in (None, low.name)]
    able: list[Lowering[Any]] = []
    reasons: list[str] = []
    for lowering in candidates:
        reason = obstacle(lowering, call, target, options)
        if reason is None:
            able.append(lowering)
        else:
            reasons.append(f"{lowering.name}: {reason}")
    if not able:
        return Choice("refused", "; ".join(reasons) or "no lowering exists for it")
    if options.select == "off":
        return Choice("kept", f"select='off': it could be rewritten by {able[0].name}")
    if forced is not None:
        return _taken(able[0], f"lowering {forced!r} was asked for", call, target, options)
    if options.select == "always":
        return _taken(able[0], "select='always'", call, target, options)
    if idiom.measured is not None:
        found = idiom.measured(able, call, target, options)
        if found is not None:
            return _taken(*found, call, target, options)
    verdicts = [(low, low.pays(call, target)) for low in able]
    for lowering, verdict in verdicts:
        if verdict.pays:
            return _taken(lowering, verdict.reason, call, target, options)
    said = [f"{low.name}: {v.reason}" for low, v in verdicts]
    return Choice("kept", "left to Inductor: " + "; ".join([*said, *reasons]))


def obstacle(lowering: Lowering[Any], call: Call, target: Target, options: Options) -> str | None:
    """Why the lowering can't take this call on this machine, or None where it can."""
    reason = unmet(lowering.requires, target)
    if reason is not None:
        return reason
    try:
        reason = lowering.refuses(call, target)
        if reason is None and options.numerics == "strict":
            note = lowering.note(call, target)
            reason = f"numerics='strict': {note}" if note else None
    except Exception as error:
        return f"its check failed: {type(error).__name__}: {error}"
    return reason


def _taken(lowering: Lowering[Any], reason: str, call: Call, target: Target, options: Options) -> Choice:
    notes = (lowering.note(call, target), _called(lowering, call, target, options))
    return Choice("rewritten", reason, lowering, tuple(note for note in notes if note))


def _called(lowering: Lowering[Any], call: Call, target: Target, options: Options) -> str | None:
    """A note where Inductor does not launch the kernels (ops/inductor.py), as far as that is known before it asks
    them. It says nothing of how they round: strict numerics do not refuse it."""
    if lowering.run is None or not target.is_gpu:
        return None
    if not lowering.launches:
        why = "it calls a library"
    elif options.launch == "python":
        why = "launch='python'"
    elif not all(isinstance(s, int) for t in call.tensors() for s in t.shape):
        why = "its sizes are symbolic"
    else:
        return None
    return f"an operator call launches it, not Inductor's code: {why}"
