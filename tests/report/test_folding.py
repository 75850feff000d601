"""Ledgers of several ranks as one."""

from __future__ import annotations

import pytest

from rocm_passes.report.folding import folded, named, summary
from rocm_passes.report.ledger import Entry, Ledger, from_document, of_rank, to_dict
from rocm_passes.report.text import table


def graph(name: str, *outcomes: str, notes: tuple[str, ...] = (), seconds: float = 0.0) -> Ledger:
    entries = [
        Entry("rotary", {"rotary": 1}, o, None, "why", "", "blocks.0", {}, ()) for o in outcomes
    ]
    return Ledger(name, entries, seconds, ("rotary",), list(notes))


def test_what_ranks_have_alike_stands_there_once() -> None:
    found = folded({r: [graph("graph0", "kept", seconds=1.0 + r)] for r in range(4)})
    assert [(g.graph, g.ranks, g.seconds) for g in found] == [
        ("graph0 of ranks 0-3", (0, 1, 2, 3), 4.0)
    ]
    assert summary(found) == "on ranks 0-3, which agree"
    (written,) = to_dict(found)["graphs"]
    assert written["ranks"] == [0, 1, 2, 3]


def test_what_one_rank_has_otherwise_stands_beside_it() -> None:
    same, other = graph("graph0", "kept"), graph("graph0", "refused")
    found = folded({0: [same], 1: [other], 2: [same]})
    assert [g.graph for g in found] == ["graph0 of ranks 0, 2", "graph0 of rank 1"]
    assert summary(found) == "on ranks 0-2, of which 2 are not on all of them"


def test_a_graph_that_only_some_ranks_compiled_twice() -> None:
    twice = [graph("graph0", "kept"), graph("graph1", "kept")]
    found = folded({0: twice, 1: twice[:1]})
    assert [(g.graph, g.ranks) for g in found] == [
        ("graph0 of ranks 0-1", (0, 1)),
        ("graph1 of rank 0", (0,)),
    ]


def test_a_note_of_one_rank_is_not_lost() -> None:
    said = "a call: chosen by rule: rank 1 waited 30 s for rank 0, which measures it"
    found = folded({0: [graph("graph0", "kept")], 1: [graph("graph0", "kept", notes=(said,))]})
    assert len(found) == 2
    assert f"graph0 of rank 1: {said}" in table(found, width=200)


@pytest.mark.parametrize(
    ("ranks", "expected"), [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([5, 0, 2, 1], "ranks 0-2, 5")]
)
def test_ranks_are_named(ranks: list[int], expected: str) -> None:
    assert named(ranks) == expected


def test_a_process_alone_has_no_ranks() -> None:
    assert summary([graph("graph0", "kept")]) == ""


def test_a_document_s_ledgers_are_folded_as_they_were() -> None:
    graphs = [graph("graph0", "kept", notes=("a note",)), graph("graph1", "refused", "kept")]
    found = from_document(to_dict(graphs))
    assert to_dict(found) == to_dict(graphs)


def test_each_rank_has_a_report_of_its_own() -> None:
    assert [of_rank("out/l.json", rank) for rank in (0, 2)] == ["out/l.json", "out/l.rank2.json"]
