"""A ledger for people: a text table. (The HTML page is in report_html.py, the JSON in ledger.py.)"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Sequence

from .ledger import Entry, Ledger, totals


def table(ledgers: Iterable[Ledger]) -> str:
    """Sites grouped where idiom, outcome, lowering and reason agree; then the totals by elementary idiom."""
    entries = [e for g in ledgers for e in g.entries]
    if not entries:
        return "no candidate sites were found"
    groups: dict[tuple[str, str, str], list[Entry]] = collections.defaultdict(list)
    for e in entries:
        outcome = f"{e.outcome} by {e.lowering}" if e.lowering else e.outcome
        groups[(e.idiom, outcome, e.reason)].append(e)
    rows = [
        (idiom, str(len(found)), outcome, _places(found), reason)
        for (idiom, outcome, reason), found in sorted(groups.items())
    ]
    return "\n".join([*_aligned(("idiom", "sites", "outcome", "where", "why"), rows), "", summary(entries)])


def summary(entries: Iterable[Entry]) -> str:
    """One line: "rms_norm 4 (rewritten 2, kept 2); rotary 2 (rewritten 2)"."""
    parts = []
    for idiom, by_outcome in sorted(totals(entries).items()):
        said = ", ".join(f"{outcome} {count}" for outcome, count in by_outcome.items() if count)
        parts.append(f"{idiom} {sum(by_outcome.values())} ({said})")
    return "; ".join(parts)


def short_location(location: str) -> str:
    """The file's last two path parts and the line."""
    path, _, line = location.rpartition(":")
    return f"{os.sep.join(path.split(os.sep)[-2:])}:{line}" if path else location


def _places(entries: Sequence[Entry]) -> str:
    places = list(dict.fromkeys(short_location(e.location) or e.module for e in entries))
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; the last one runs free."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in [header, *rows]
    ]
