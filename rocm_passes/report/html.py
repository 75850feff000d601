"""A ledger as one HTML page: all is inside it, it loads nothing, and without scripts it is still a
document.

The page opens on what was not rewritten and why, and on what gained most (html_overview.py). The
groups of like sites follow (html_groups.py), then what passes over the whole graph did outside of
the sites (html_changes.py). The style sheet and the script lie beside this file,
as report.css and report.js.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from rocm_passes.errors import plural
from rocm_passes.report import html_changes, html_groups, html_overview
from rocm_passes.report.html_groups import Group, Page
from rocm_passes.report.ledger import OUTCOMES, from_document
from rocm_passes.report.text import empty

SiteRecord = Mapping[str, Any]


def page(document: Mapping[str, Any], title: str) -> str:
    """The page of a ledger in its JSON form (docs/ledger.md).

    A site may carry "model", and the document "models" (one mapping per model, shown as a table of
    its own): the demo adds both. "parts" (a list of name, action and detail) is what
    compile_pipeline did.
    """
    sites: Sequence[SiteRecord] = document["sites"]
    shared = Page(document["environment"], document.get("drawings", ()))
    groups = html_groups.groups(sites)
    body = [
        f"<h1>{escape(title)}</h1>",
        _environment(document["environment"]),
        _notes(document.get("graphs", ())),
        _table(document.get("models", ()), "models"),
        _table(map(_part, document.get("parts", ())), "parts"),
        "" if sites else f'<p class="empty">{escape(empty(from_document(document)))}</p>',
        _totals(sites),
        _tabs(groups),
        html_overview.overview(groups),
        _filters(sites),
        _groups(groups, shared),
        html_changes.changes(document.get("changes", ()), document["environment"]),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_asset('report.css')}</style></head><body>",
            *body,
            f"<script>\n{_asset('report.js')}</script></body></html>\n",
        ]
    )


def framed(document: Mapping[str, Any], title: str) -> str:
    """The page in a frame of its own, for a notebook: its styles and scripts touch nothing else."""
    source = escape(page(document, title), quote=True)
    return (
        f'<iframe srcdoc="{source}" title="{escape(title)}" '
        'style="width:100%;height:40rem;border:1px solid #8884;border-radius:6px"></iframe>'
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _environment(found: Mapping[str, Any]) -> str:
    known = {k.replace("_", " "): v for k, v in found.items() if v is not None}
    rate = known.pop("copy bytes per second", None)
    if rate is not None:
        known["a large copy"] = f"{rate / 1e12:.3g} TB/s"
    pairs = " · ".join(f"{escape(k)} <b>{escape(str(v))}</b>" for k, v in known.items())
    return f'<p class="environment">{pairs}</p>'


def _notes(graphs: Iterable[Mapping[str, Any]]) -> str:
    """What was noted of whole graphs, each once."""
    notes = dict.fromkeys(note for graph in graphs for note in graph.get("notes", ()))
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _table(found: Iterable[Mapping[str, Any]], name: str) -> str:
    rows = list(found)
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f"<th>{escape(n.replace('_', ' '))}</th>" for n in names)
    lines = ["".join(_cell(n, row[n]) for n in names) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{name}"><tr>{head}</tr>{body}</table></div>'


def _cell(name: str, value: object) -> str:
    """data-name: shown in front of the value where a narrow page has no head."""
    return f'<td data-name="{escape(name)}">{escape(_text(value))}</td>'


def _part(found: Mapping[str, Any]) -> dict[str, str]:
    """A line of compile_pipeline's report; its share as a percentage."""
    share = found.get("share")
    said = {"weights compiled": "" if share is None else f"{100 * share:.0f} %"}
    return {**{key: found[key] for key in ("name", "action", "detail")}, **said}


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _totals(sites: Iterable[SiteRecord]) -> str:
    """Elementary idioms by outcome, each as a bar."""
    counts: dict[str, dict[str, int]] = {}
    for site in sites:
        for name, count in site["covers"].items():
            row = counts.setdefault(name, dict.fromkeys(OUTCOMES, 0))
            row[site["outcome"]] += count
    return (
        '<div class="totals">' + "".join(_bar(n, c) for n, c in sorted(counts.items())) + "</div>"
    )


def _bar(name: str, counts: Mapping[str, int]) -> str:
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    parts = "".join(
        f'<i class="{outcome}" style="flex:{count}"></i>'
        for outcome, count in counts.items()
        if count
    )
    return (
        f'<div class="total"><b>{sum(counts.values())}</b> {escape(name)}'
        f'<div class="bar">{parts}</div><small>{said}</small></div>'
    )


def _tabs(groups: Sequence[Group]) -> str:
    """Overview, all sites, and one tab for each component. They work where scripts do."""
    counts: dict[str, int] = {}
    for group in groups:
        for site in group.sites:
            name = html_groups.component(site)
            counts[name] = counts.get(name, 0) + 1
    tabs = [("overview", "Overview", None), ("", "All sites", sum(counts.values()))]
    tabs += [(name, name, count) for name, count in counts.items()]
    return '<nav class="tabs" role="tablist">' + "".join(_tab(*tab) for tab in tabs) + "</nav>"


def _tab(key: str, name: str, count: int | None) -> str:
    said = "" if count is None else f" <small>{count}</small>"
    first = "true" if key == "overview" else "false"
    return (
        f'<button type="button" role="tab" aria-selected="{first}" '
        f'data-tab="{escape(key)}">{escape(name)}{said}</button>'
    )


def _filters(sites: Sequence[SiteRecord]) -> str:
    selects = []
    for key in ("idiom", "outcome"):
        values = sorted({str(s[key]) for s in sites})
        options = "".join(f"<option>{escape(v)}</option>" for v in values)
        choice = f'<select data-key="{key}"><option value="">all</option>{options}</select>'
        selects.append(f"<label>{key} {choice}</label>")
    orders = "".join(f'<option value="{k}">{v}</option>' for k, v in html_groups.ORDERS.items())
    selects.append(f'<label>sort by <select data-sort="">{orders}</select></label>')
    search = '<label>search <input type="search" placeholder="module, file, reason"></label>'
    count = f"<output>{plural(len(sites), 'site')}</output>"
    return f'<form class="filters">{"".join(selects)}{search}{count}</form>'


def _groups(groups: Sequence[Group], shared: Page) -> str:
    body = "\n".join(html_groups.group_html(group, shared) for group in groups)
    return f'<section class="groups">\n{body}\n</section>'
