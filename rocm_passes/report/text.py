"""A ledger as text, for people. (The HTML page is in html.py, the JSON in ledger.py.)"""

from __future__ import annotations

import collections
import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from rocm_passes.errors import plural
from rocm_passes.report.changes import Change
from rocm_passes.report.ledger import Entry, Ledger, totals

#: Stands above what passes over the whole graph did.
CHANGES = "changes outside of sites:"


def table(ledgers: Iterable[Ledger], width: int | None = None) -> str:
    """Sites that agree in idiom, outcome, lowering and reason as one group; then like changes
    outside of sites, and elementary idioms' totals.

    width: in characters; None takes the terminal's, or 100.
    """
    ledgers = list(ledgers)
    entries = [e for g in ledgers for e in g.entries]
    width = width or shutil.get_terminal_size((100, 24)).columns
    changed = changes(ledgers, width)
    if not entries:
        return "\n".join([empty(ledgers), *changed])
    groups: dict[tuple[str, ...], list[Entry]] = collections.defaultdict(list)
    for e in entries:
        groups[(e.idiom, outcome(e), e.reason, *e.notes)].append(e)
    heads = aligned([_head(found) for _, found in sorted(groups.items())])
    blocks = [
        "\n".join([head, *_reasons(found, width)])
        for head, (_, found) in zip(heads, sorted(groups.items()), strict=True)
    ]
    return "\n".join(
        [
            *blocks,
            *changed,
            "",
            *notes(ledgers, width),
            *textwrap.wrap(f"in all: {summary(entries)}", width),
        ]
    )


def changes(ledgers: Iterable[Ledger], width: int) -> list[str]:
    """What passes over the whole graph did, like changes as one group; empty where they did
    nothing.
    """
    groups: dict[tuple[str, ...], list[Change]] = collections.defaultdict(list)
    for change in (c for g in ledgers for c in g.changes):
        groups[change.kind()].append(change)
    if not groups:
        return []
    ordered = [found for _, found in sorted(groups.items())]
    heads = aligned([(c[0].step, f"{len(c):>4}", c[0].did, _places(c)) for c in ordered])
    said = [_indented(found[0].said(), width) for found in ordered]
    return ["", CHANGES, *(line for pair in zip(heads, said, strict=True) for line in pair)]


def notes(ledgers: Iterable[Ledger], width: int) -> list[str]:
    """What was said of whole graphs, with the names of the graphs, as lines."""
    said: dict[str, list[str]] = collections.defaultdict(list)
    for graph in ledgers:
        for note in graph.notes:
            said[note].append(graph.graph)
    return [
        line
        for note, graphs in said.items()
        for line in textwrap.wrap(f"{', '.join(graphs)}: {note}", width, subsequent_indent="  ")
    ]


def every_site(ledgers: Iterable[Ledger]) -> str:
    """One line per site, in the order of the graphs; then one per change outside of sites."""
    ledgers = list(ledgers)
    changed = _every_change(ledgers)
    rows = [
        (
            g.graph,
            e.idiom,
            outcome(e),
            e.module or "-",
            short_location(e.location) or "-",
            inputs(e) or "-",
            e.reason,
        )
        for g in ledgers
        for e in g.entries
    ]
    if not rows:
        return "\n".join([empty(ledgers), *changed])
    head = ("graph", "idiom", "outcome", "module", "where", "inputs", "why")
    return "\n".join([*aligned([head, *rows]), *changed])


def _every_change(ledgers: Iterable[Ledger]) -> list[str]:
    rows = [
        (g.graph, c.step, c.module or "-", short_location(c.location) or "-", c.did, c.said())
        for g in ledgers
        for c in g.changes
    ]
    head = ("graph", "pass", "module", "where", "what", "why")
    return ["", CHANGES, *aligned([head, *rows])] if rows else []


def empty(ledgers: Sequence[Ledger]) -> str:
    """Why there is no site to report."""
    if not ledgers:
        return (
            "no candidate sites: no graph went through the passes. Either nothing was compiled "
            "with the backend, "
            "or the compiled code came from Inductor's caches, or the option idioms leaves nothing "
            "to look for"
        )
    names = ", ".join(dict.fromkeys(name for g in ledgers for name in g.looked_for))
    looked = f" (looked for: {names})" if names else ""
    return (
        f"no candidate sites: {plural(len(ledgers), 'graph')} compiled, and none computes a "
        f"known idiom{looked}"
    )


def summary(entries: Iterable[Entry]) -> str:
    """One line: "rms_norm 4 (rewritten 2, kept 2); rotary 2 (rewritten 2)"."""
    parts = []
    for idiom, by_outcome in sorted(totals(entries).items()):
        said = ", ".join(f"{name} {count}" for name, count in by_outcome.items() if count)
        parts.append(f"{idiom} {sum(by_outcome.values())} ({said})")
    return "; ".join(parts)


def outcome(entry: Entry) -> str:
    """`rewritten by unfold`, `kept` or `refused`."""
    return f"{entry.outcome} by {entry.lowering}" if entry.lowering else entry.outcome


def inputs(entry: Entry) -> str:
    """The shapes and dtypes of a site's inputs: `bfloat16[1, 240, 48] bfloat16[48]`."""
    return " ".join(
        f"{str(i['dtype']).removeprefix('torch.')}[{', '.join(map(str, i['shape'] or ()))}]"
        for i in entry.inputs
    )


def short_location(location: str) -> str:
    """The file's last two path parts and the line."""
    path, _, line = location.rpartition(":")
    return f"{os.sep.join(path.split(os.sep)[-2:])}:{line}" if path else location


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; the last one runs free."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _head(found: Sequence[Entry]) -> tuple[str, ...]:
    first = found[0]
    return first.idiom, f"{len(found):>4}", outcome(first), _places(found)


def _reasons(found: Sequence[Entry], width: int) -> list[str]:
    """Why, beneath a group's head: each lowering's reason, note and larger fusion on a line of its
    own.
    """
    says = [*found[0].reasons(), *(f"note: {note}" for note in found[0].notes)]
    says += _considered(found)
    return [_indented(line, width) for line in says]


def _indented(line: str, width: int) -> str:
    return textwrap.fill(line, max(width, 40), initial_indent=" " * 4, subsequent_indent=" " * 6)


def _considered(found: Sequence[Entry]) -> list[str]:
    """Larger fusions that were not taken; those that have one answer are named together."""
    names: dict[str, list[str]] = {}
    for considered in dict.fromkeys(c for e in found for c in e.considered):
        name, _, reason = considered.partition(": ")
        names.setdefault(reason, []).append(name)
    return [
        f"also looked at: {', '.join(those)}: {'the same' if reason == found[0].reason else reason}"
        for reason, those in names.items()
    ]


def _places(entries: Sequence[Entry | Change]) -> str:
    places = list(dict.fromkeys(short_location(e.location) or e.module for e in entries))
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")
