"""What passes over the whole graph did outside of the sites, on the ledger's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rocm_passes.report import links
from rocm_passes.report.changes import Change

ChangeRecord = Mapping[str, Any]


def changes(found: Iterable[ChangeRecord], environment: Mapping[str, Any]) -> str:
    """Like changes as one group, with their places inside; empty where there are none."""
    groups: dict[tuple[str, ...], list[ChangeRecord]] = {}
    for record in found:
        groups.setdefault(_change(record).kind(), []).append(record)
    if not groups:
        return ""
    body = "\n".join(_group(groups[kind], environment) for kind in sorted(groups))
    return (
        '<section class="changes"><h2>Changes outside of sites</h2>'
        "<p><small>What passes over the whole graph did. It counts in no total.</small></p>\n"
        f"{body}\n</section>"
    )


def _change(record: ChangeRecord) -> Change:
    return Change.from_dict({k: v for k, v in record.items() if k not in ("graph", "model")})


def _group(found: Sequence[ChangeRecord], environment: Mapping[str, Any]) -> str:
    first = _change(found[0])
    failed = first.verdict == "failed"
    head = (
        f'<span class="count">{len(found)}</span> <b>{escape(first.step)}</b> '
        f'<span class="{"refused" if failed else "rewritten"}">{escape(first.did)}</span>'
        f'<p class="reason">{escape(first.said())}</p>'
    )
    places = "\n".join(_place(record, environment) for record in found)
    return (
        f'<details class="change"><summary>{head}</summary>'
        f'<ul class="sites">\n{places}\n</ul></details>'
    )


def _place(record: ChangeRecord, environment: Mapping[str, Any]) -> str:
    where = links.shown(str(record["location"]), environment)
    said = [f"<b>{escape(record['module'] or '-')}</b>", where]
    said += [f"<small>{escape(str(record.get('graph', '')))}</small>"]
    read = ", ".join(f"{k} {v}" for k, v in record["parameters"].items())
    said += [f"<small>{escape(read)}</small>"] if read else []
    return f"<li>{' '.join(said)}</li>"
