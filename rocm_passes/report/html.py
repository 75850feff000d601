"""A ledger as one HTML page: all is inside it, it loads nothing, and without scripts it is still a
table.

The style sheet and the script lie beside this file, as report.css and report.js.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from rocm_passes.errors import plural
from rocm_passes.report.ledger import OUTCOMES

SiteRecord = Mapping[str, Any]


def page(document: Mapping[str, Any], title: str) -> str:
    """The page of a ledger in its JSON form (docs/ledger.md).

    A site may carry "model", and the document "models" (one mapping per model, shown as a table of
    its own): the demo adds both.
    """
    sites: Sequence[SiteRecord] = document["sites"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _environment(document["environment"]),
        _models(document.get("models", ())),
        _totals(sites),
        _filters(sites),
        _table(sites),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_asset('report.css')}</style></head><body>",
            *body,
            f"<script>\n{_asset('report.js')}</script></body></html>\n",
        ]
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _environment(found: Mapping[str, Any]) -> str:
    pairs = " · ".join(
        f"{escape(k.replace('_', '-'))} {escape(_text(v))}" for k, v in found.items()
    )
    return f'<p class="environment">{pairs}</p>'


def _models(models: Iterable[Mapping[str, Any]]) -> str:
    rows = list(models)
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f"<th>{escape(n.replace('_', ' '))}</th>" for n in names)
    lines = ["".join(f"<td>{escape(_text(row[n]))}</td>" for n in names) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="models"><tr>{head}</tr>{body}</table></div>'


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


def _filters(sites: Sequence[SiteRecord]) -> str:
    selects = []
    for key in ("model", "idiom", "outcome"):
        values = sorted({str(s[key]) for s in sites if key in s})
        if values:
            options = "".join(f"<option>{escape(v)}</option>" for v in values)
            choice = f'<select data-key="{key}"><option value="">all</option>{options}</select>'
            selects.append(f"<label>{key} {choice}</label>")
    search = '<label>search <input type="search" placeholder="module, file, reason"></label>'
    count = f"<output>{plural(len(sites), 'site')}</output>"
    return f'<form class="filters">{"".join(selects)}{search}{count}</form>'


def _table(sites: Sequence[SiteRecord]) -> str:
    columns = ["idiom", "outcome", "lowering", "module", "location", "reason"]
    if any("model" in s for s in sites):
        columns.insert(0, "model")
    head = "".join(f'<th tabindex="0">{c}</th>' for c in columns)
    rows = "\n".join(_row(site, columns) for site in sites)
    return (
        f'<div class="scroll"><table class="sites"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(site: SiteRecord, columns: Sequence[str]) -> str:
    keys = "".join(
        f' data-{key}="{escape(str(site[key]))}"'
        for key in ("model", "idiom", "outcome")
        if key in site
    )
    cells = "".join(f"<td>{_cell(site, c)}</td>" for c in columns)
    return f"<tr{keys}>{cells}</tr>"


def _cell(site: SiteRecord, column: str) -> str:
    found = escape(_text(site.get(column)))
    if column == "outcome":
        return f'<span class="{found}">{found}</span>'
    if column == "location":
        return f'<span title="{found}">{escape(_short(str(site[column])))}</span>'
    if column == "reason":
        return f"<details><summary>{found}</summary>{_details(site)}</details>"
    return found


def _details(site: SiteRecord) -> str:
    """What a click on a reason opens: each lowering's verdict, parameters, inputs, notes, and
    larger fusions.
    """
    rows: list[tuple[Any, Any]] = [(v["lowering"], _verdict(v)) for v in site["verdicts"]]
    rows += [("error", site["error"])] if site["error"] else []
    rows += [(k, v) for k, v in site["parameters"].items()]
    rows += [
        (f"input {i['name']}", f"{i['dtype']}{i['shape']}, strides {i['stride']}")
        for i in site["inputs"]
    ]
    rows += [("note", note) for note in site["notes"]]
    rows += [("also looked at", other) for other in site["considered"]]
    rows += [("at", site["location"]), ("graph", site.get("graph"))]
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_text(v))}</dd>" for k, v in rows)
    return f"<dl>{items}</dl>"


def _verdict(found: Mapping[str, str]) -> str:
    said = found["verdict"].replace("_", " ")
    return f"{said}: {found['reason']}" if found["reason"] else said


def _short(location: str) -> str:
    return "/".join(location.split("/")[-2:])


def _text(value: object) -> str:
    return "" if value is None else str(value)
