"""What the ledger's page opens on: what was not rewritten and why, and what gained most."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rocm_passes.report.html_bars import size
from rocm_passes.report.html_groups import Group, became, short_reason

#: Groups in each list; the rest is a click away.
MOST = 8


def overview(groups: Sequence[Group]) -> str:
    left = [g for g in groups if g.first["outcome"] != "rewritten"]
    done = [g for g in groups if g.first["outcome"] == "rewritten"]
    measured = any(g.saved_ms is not None for g in done)
    done.sort(key=lambda g: (-(g.saved_ms or 0.0), -g.bytes, -len(g.sites)))
    how = (
        "By measured time, against the call as the library has it."
        if measured
        else "No time was measured here: by the bytes that the sites read and write."
    )
    all_done = "Every site was rewritten." if groups else "No site was found."
    return (
        '<section class="overview">'
        f"{_panel('Not rewritten, and why', '', left, all_done)}"
        f"{_panel('Gained most', how, done, 'No site was rewritten.')}"
        "</section>"
    )


def _panel(title: str, how: str, groups: Sequence[Group], nothing: str) -> str:
    items = "".join(_item(group) for group in groups[:MOST])
    more = len(groups) - MOST
    rest = f'<p class="more">and {more} more, under All sites</p>' if more > 0 else ""
    body = f"<ol>{items}</ol>{rest}" if groups else f"<p>{nothing}</p>"
    said = f"<p><small>{how}</small></p>" if how and groups else ""
    return f"<div class='panel'><h2>{title}</h2>{said}{body}</div>"


def _item(group: Group) -> str:
    first = group.first
    gain = ""
    if first["outcome"] == "rewritten":
        saved = group.saved_ms
        gain = f"{saved:.3g} ms saved" if saved is not None else size(group.bytes)
    return (
        f'<li><a href="#{group.key}"><span class="count">{len(group.sites)}</span> '
        f'<b>{escape(first["idiom"])}</b> <span class="{first["outcome"]}">'
        f"{escape(became(first))}</span> <small>{gain}</small></a>"
        f"<p>{escape(short_reason(first))}</p></li>"
    )
