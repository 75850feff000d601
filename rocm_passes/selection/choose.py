"""Which lowering a site gets, and the reason in words for a user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..idioms.idiom import Idiom, Site
from ..ops.operator import Lowering
from ..options import Options
from ..target import Target, unmet


@dataclass(frozen=True)
class Choice:
    """outcome as in the ledger; lowering is None unless the outcome is "rewritten"."""

    outcome: str
    reason: str
    lowering: Lowering | None = None
    notes: tuple[str, ...] = ()


def choose(idiom: Idiom, site: Site, target: Target, options: Options) -> Choice:
    values = site.values()
    forced = options.forced_lowering(idiom.name)
    candidates = [low for low in idiom.lowerings if forced in (None, low.name)]
    able: list[Lowering] = []
    reasons: list[str] = []
    for lowering in candidates:
        reason = obstacle(lowering, values, target, options)
        if reason is None:
            able.append(lowering)
        else:
            reasons.append(f"{lowering.name}: {reason}")
    if not able:
        return Choice("refused", "; ".join(reasons) or "no lowering exists for it")
    if options.select == "off":
        return Choice("kept", f"select='off': it could be rewritten by {able[0].name}")
    if forced is not None:
        return _taken(able[0], f"lowering {forced!r} was asked for", values, target)
    if options.select == "always":
        return _taken(able[0], "select='always'", values, target)
    if idiom.measured is not None:
        found = idiom.measured(able, values, target, options)
        if found is not None:
            return _taken(*found, values, target)
    verdicts = [(low, low.pays(target, **values)) for low in able]
    for lowering, verdict in verdicts:
        if verdict.pays:
            return _taken(lowering, verdict.reason, values, target)
    said = [f"{low.name}: {v.reason}" for low, v in verdicts]
    return Choice("kept", "left to Inductor: " + "; ".join([*said, *reasons]))


def obstacle(lowering: Lowering, values: Mapping[str, Any], target: Target, options: Options) -> str | None:
    """Why the lowering can't take this call on this machine, or None where it can."""
    reason = unmet(lowering.requires, target)
    if reason is not None:
        return reason
    try:
        reason = lowering.refuses(**values)
        if reason is None and options.numerics == "strict":
            note = lowering.note(target=target, **values)
            reason = f"numerics='strict': {note}" if note else None
    except Exception as error:
        return f"its check failed: {type(error).__name__}: {error}"
    return reason


def _taken(lowering: Lowering, reason: str, values: Mapping[str, Any], target: Target) -> Choice:
    note = lowering.note(target=target, **values)
    return Choice("rewritten", reason, lowering, (note,) if note else ())
