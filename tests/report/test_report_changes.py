"""Changes outside of sites as text, as JSON, on the page, and of several ranks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rocm_passes.report import html as report_html
from rocm_passes.report import text as report
from rocm_passes.report.changes import Change
from rocm_passes.report.folding import folded
from rocm_passes.report.ledger import Entry, Ledger, from_document, to_dict

DROPPED = Change(
    "x / 1.0 is read as x",
    "it is x to the bit",
    step="drop_identities",
    location="diffusers/models/attention.py:95",
    module="blocks.0.attn",
    component="unet",
    parameters={"readers": 1, "dtype": "float16"},
)
CAST = Change("a cast <to> int8 goes by int32", "as in eager", "eager", "cast_by_int32")
SITE = Entry("rotary", {"rotary": 1}, "kept", None, "why", "a/b.py:1", "blocks.0", {}, ())


def graphs(*sites: Entry) -> list[Ledger]:
    first, second = Ledger("graph0", list(sites)), Ledger("graph1")
    first.changed(replace(DROPPED, module=f"blocks.{i}.attn") for i in range(3))
    first.changed([replace(DROPPED, location="diffusers/models/resnet.py:7")])
    second.changed([CAST, DROPPED.taken_back("memory_format failed")])
    return [first, second]


def test_like_changes_are_one_group_of_the_text() -> None:
    lines = report.table(graphs(SITE), width=100).splitlines()
    at = lines.index(report.CHANGES)
    assert lines[at + 1 :] == [
        "cast_by_int32       1  a cast <to> int8 goes by int32",
        "    eager: as in eager",
        "drop_identities     1  x / 1.0 is read as x            models/attention.py:95",
        "    taken back: memory_format failed",
        "drop_identities     4  x / 1.0 is read as x            models/attention.py:95 and 1 more",
        "    exact: it is x to the bit",
        "",
        "in all: rotary 1 (kept 1)",
    ]


def test_they_are_shown_where_there_is_no_site() -> None:
    text = report.table(graphs(), width=100)
    assert text.startswith("no candidate sites: 2 graphs compiled")
    assert f"\n{report.CHANGES}\n" in text and "in all" not in text


def test_every_change_has_a_line() -> None:
    lines = report.every_site(graphs(SITE)).splitlines()
    at = lines.index(report.CHANGES)
    assert len(lines[at + 2 :]) == 6
    assert lines[at + 2].split() == [
        *("graph0", "drop_identities", "blocks.0.attn", "models/attention.py:95"),
        *["x", "/", "1.0", "is", "read", "as", "x", "exact:", "it", "is", "x", "to", "the", "bit"],
    ]


def test_a_ledger_without_changes_says_nothing_of_them() -> None:
    without = [Ledger("graph0", [SITE])]
    assert report.CHANGES not in report.table(without)
    assert report.CHANGES not in report.every_site(without)
    assert "Changes outside of sites" not in report_html.page(to_dict(without, {}), "title")


def test_they_come_back_from_json() -> None:
    before = graphs(SITE)
    written = json.loads(json.dumps(to_dict(before)))
    assert [g["changes"] for g in written["graphs"]] == [4, 2]
    assert written["changes"][0] == {
        "graph": "graph0",
        "step": "drop_identities",
        "verdict": "taken",
        "did": "x / 1.0 is read as x",
        "reason": "it is x to the bit",
        "contract": "exact",
        "location": "diffusers/models/attention.py:95",
        "module": "blocks.0.attn",
        "component": "unet",
        "parameters": {"readers": 1, "dtype": "float16"},
        "stays": False,
    }
    assert [g.changes for g in from_document(written)] == [g.changes for g in before]
    again = [Ledger.from_dict(json.loads(json.dumps(g.to_dict()))) for g in before]
    assert [g.changes for g in again] == [g.changes for g in before]


def test_ledgers_from_before_have_none() -> None:
    found = Ledger("graph0", [SITE]).to_dict()
    del found["changes"]
    assert Ledger.from_dict(found).changes == []


def test_they_are_on_the_page_once_with_their_places() -> None:
    page = report_html.page(to_dict(graphs(SITE), {"diffusers": "0.40.0"}), "title")
    section = page.split('<section class="changes">')[1].split("</section>")[0]
    assert section.count('<details class="change">') == 3 and section.count("<li>") == 6
    assert '<span class="count">4</span> <b>drop_identities</b>' in section
    assert "blob/v0.40.0/src/diffusers/models/attention.py#L95" in section
    assert "a cast &lt;to&gt; int8" in section and "readers 1" in section
    assert '<span class="refused">x / 1.0 is read as x</span>' in section


def test_ranks_that_changed_a_graph_otherwise_are_apart() -> None:
    same, other = graphs(SITE)[0], Ledger("graph0", [SITE])
    assert len(folded({0: [same], 1: [graphs(SITE)[0]]})) == 1
    assert len(folded({0: [same], 1: [other]})) == 2


@pytest.mark.parametrize("wrong", [{"contract": "near"}, {"verdict": "rewritten"}])
def test_words_are_those_of_the_documentation(wrong: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        replace(DROPPED, **wrong)
