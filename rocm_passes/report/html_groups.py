"""The groups of like sites on the ledger's page: one for each idiom, outcome, lowering, reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rocm_passes.errors import plural
from rocm_passes.report import html_bars, links
from rocm_passes.report.svg import svg

SiteRecord = Mapping[str, Any]

#: How the groups can be sorted: the attribute's name, and what the page calls it.
ORDERS = {"count": "count", "saved": "time saved", "bytes": "bytes", "idiom": "idiom",
          "outcome": "outcome"}  # fmt: skip
#: Refused sites first: the page is opened to find out why.
_URGENCY = {"refused": 0, "kept": 1, "rewritten": 2}


@dataclass(frozen=True)
class Page:
    """What all groups of a page share."""

    environment: Mapping[str, Any]
    drawings: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Group:
    """Sites that agree in idiom, outcome, lowering and reason. key: its name within the page."""

    key: str
    sites: tuple[SiteRecord, ...]

    @property
    def first(self) -> SiteRecord:
        return self.sites[0]

    @property
    def bytes(self) -> int:
        return sum(s.get("bytes") or 0 for s in self.sites)

    @property
    def saved_ms(self) -> float | None:
        """Measured time saved by all sites, against what the library does with the call."""
        found = [s for s in map(html_bars.saved_ms, self.sites) if s is not None]
        return sum(found) if found else None


def groups(sites: Iterable[SiteRecord]) -> list[Group]:
    """Refused, kept, then rewritten groups, the largest first."""
    found: dict[tuple[Any, ...], list[SiteRecord]] = {}
    for site in sites:
        key = (site["idiom"], site["outcome"], site["lowering"], site["reason"])
        found.setdefault(key, []).append(site)
    ordered = sorted(
        found.values(), key=lambda s: (_URGENCY[s[0]["outcome"]], -len(s), s[0]["idiom"])
    )
    return [Group(f"g{i}", tuple(each)) for i, each in enumerate(ordered)]


def component(site: SiteRecord) -> str:
    """The tab that a site is under: its model, or its model's source file."""
    return str(site.get("model") or site.get("component") or "other")


def became(site: SiteRecord) -> str:
    """`rewritten by triton`, `kept`, `refused`."""
    by = f" by {site['lowering']}" if site["lowering"] else ""
    return f"{site['outcome']}{by}"


def group_html(group: Group, page: Page) -> str:
    first = group.first
    attributes = {
        "idiom": first["idiom"],
        "outcome": first["outcome"],
        "count": len(group.sites),
        "bytes": group.bytes,
        "saved": round(group.saved_ms or 0, 6),
    }
    data = "".join(f' data-{k}="{escape(str(v))}"' for k, v in attributes.items())
    head = (
        f'<span class="count">{len(group.sites)}</span> <b>{escape(first["idiom"])}</b> '
        f'<span class="{first["outcome"]}">{escape(became(first))}</span>'
        f'<p class="reason">{_reason(first)}</p>'
    )
    inside = [
        _asked(group.sites),
        html_bars.bars(group.sites, page.environment),
        _drawings(group.sites, page.drawings),
        _sites(group.sites, page.environment),
    ]
    return (
        f'<details class="group" id="{group.key}"{data}><summary>{head}</summary>'
        f"{''.join(inside)}</details>"
    )


def _reason(site: SiteRecord) -> str:
    """The reason, on a line for each lowering where it is a summary of what they said."""
    parts = _summed_up(site)
    if parts:
        head = _head(site, parts)
        return "".join(
            f"<span>{escape(line)}</span>" for line in (*([head] if head else []), *parts)
        )
    return escape(str(site["reason"]))


def short_reason(site: SiteRecord) -> str:
    """The reason without the lowerings that cannot run there, where others said something."""
    parts = _summed_up(site)
    able = [p for p, v in zip(parts, site["verdicts"], strict=False) if _can_run(v)]
    return f"{_head(site, parts)}{'; '.join(able)}" if able else str(site["reason"])


def _can_run(verdict: Mapping[str, Any]) -> bool:
    return bool(verdict["verdict"] != "unavailable")


def _head(site: SiteRecord, parts: Sequence[str]) -> str:
    """What stands in front of the parts in a reason that ends in them."""
    return str(site["reason"])[: -len("; ".join(parts))]


def _summed_up(site: SiteRecord) -> list[str]:
    """What each lowering said, where the reason is made of that; else nothing."""
    parts = [f"{v['lowering']}: {v['reason']}" for v in site["verdicts"]]
    return parts if parts and str(site["reason"]).endswith("; ".join(parts)) else []


def _asked(sites: Sequence[SiteRecord]) -> str:
    """What was asked and noted beside the reason; like answers stand once."""
    first = sites[0]
    rows: list[tuple[str, str]] = []
    if len(first["verdicts"]) > 1 and not _summed_up(first):
        rows += [(v["lowering"], _verdict(v)) for v in first["verdicts"]]
    rows += [("error", e) for e in _once(s["error"] for s in sites if s["error"])]
    rows += [("note", n) for n in _once(n for s in sites for n in s["notes"])]
    rows += [("also looked at", line) for line in _considered(sites)]
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows)
    return f"<dl>{items}</dl>" if rows else ""


def _considered(sites: Sequence[SiteRecord]) -> list[str]:
    """Larger fusions that were not taken; those with one answer stand together."""
    names: dict[str, list[str]] = {}
    for considered in _once(c for s in sites for c in s["considered"]):
        name, _, reason = considered.partition(": ")
        names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(those)}: {'the same' if reason == sites[0]['reason'] else reason}"
        for reason, those in names.items()
    ]


def _verdict(found: Mapping[str, Any]) -> str:
    said = str(found["verdict"]).replace("_", " ")
    return f"{said}: {found['reason']}" if found["reason"] else said


def _once(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _drawings(sites: Sequence[SiteRecord], drawings: Sequence[Mapping[str, Any]]) -> str:
    """Each distinct site's graph, before and after."""
    numbers = _once(s["drawing"] for s in sites if s.get("drawing") is not None)
    parts: list[str] = []
    for number in numbers:
        drawing = drawings[int(number)]
        like = sum(s.get("drawing") == number for s in sites)
        parts.append(
            f'<details class="drawing"{" open" if len(parts) == 0 else ""}>'
            f"<summary>graph of {plural(like, 'site')}</summary>"
            f'<div class="pair">{_side(drawing, "before")}{_side(drawing, "after")}</div></details>'
        )
    return "".join(parts)


def _side(drawing: Mapping[str, Any], which: str) -> str:
    drawn = svg(drawing.get(which) or (), f"the site's graph {which} the rewrite")
    return f"<figure><figcaption>{which}</figcaption>{drawn}</figure>" if drawn else ""


def _sites(sites: Sequence[SiteRecord], environment: Mapping[str, Any]) -> str:
    rows = "\n".join(_site(site, environment) for site in sites)
    return f'<ul class="sites">\n{rows}\n</ul>'


def _site(site: SiteRecord, environment: Mapping[str, Any]) -> str:
    where = links.shown(str(site["location"]), environment)
    said = [f"<b>{escape(site['module'] or '-')}</b>", where, f"<code>{_inputs(site)}</code>"]
    said += [f"<small>{escape(str(site.get('graph', '')))}</small>"]
    read = ", ".join(f"{k} {v}" for k, v in site["parameters"].items())
    said += [f"<small>{escape(read)}</small>"] if read else []
    return f'<li data-tab="{escape(component(site))}">{" ".join(said)}</li>'


def _inputs(site: SiteRecord) -> str:
    parts = (
        f"{i['name']} {i['dtype']}[{', '.join(map(str, i['shape'] or ()))}]" for i in site["inputs"]
    )
    return escape(" · ".join(parts))
