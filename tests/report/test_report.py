"""The ledger as text and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rocm_passes.report import ledger
from rocm_passes.report import text as report
from rocm_passes.report.ledger import LEFT, Entry, Ledger, LoweringVerdict, summary

SAID = (
    LoweringVerdict("triton", "not_faster", "slower here; by 3 µs"),
    LoweringVerdict("aiter", "unavailable", "not installed"),
)


def entry(**changes: Any) -> Entry:
    about: dict[str, Any] = {
        "idiom": "rms_norm",
        "covers": {"rms_norm": 1},
        "outcome": "kept",
        "lowering": None,
        "reason": LEFT + summary(SAID),
        "verdicts": SAID,
        "location": "/home/user/project/models/wan.py:95",
        "module": "blocks.0.norm",
        "parameters": {"eps": 1e-6},
        "inputs": ({"name": "x", "shape": [2, 16], "stride": [16, 1], "dtype": "bfloat16"},),
    }
    return Entry(**{**about, **changes})


@pytest.fixture
def ledgers() -> list[Ledger]:
    first, second = Ledger("graph0"), Ledger("graph1")
    first.add(entry())
    first.add(entry(module="blocks.1.norm", location="/home/user/project/models/wan.py:99"))
    second.add(
        entry(
            idiom="add_rms_norm",
            covers={"rms_norm": 2},
            outcome="rewritten",
            lowering="triton",
            reason="41 µs against 47 µs",
            notes=("the sum is not rounded",),
        )
    )
    second.add(
        entry(
            outcome="refused",
            reason="its <rsqrt> & weight are used elsewhere",
            location="",
            considered=("add_rms_norm: the sum is used 3 times",),
        )
    )
    return [first, second]


def test_table_groups_like_sites(ledgers: list[Ledger]) -> None:
    lines = report.table(ledgers, width=100).splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads[:3] == [
        "add_rms_norm     1  rewritten by triton  models/wan.py:95",
        "rms_norm         2  kept                 models/wan.py:95 and 1 more",
        "rms_norm         1  refused              blocks.0.norm",
    ]
    said = [line.strip() for line in lines if line.startswith(" ")]
    assert said == [
        "41 µs against 47 µs",
        "note: the sum is not rounded",
        "left to Inductor: triton: slower here; by 3 µs",
        "aiter: not installed",
        "its <rsqrt> & weight are used elsewhere",
        "also looked at: add_rms_norm: the sum is used 3 times",
    ]


def test_larger_fusions_with_the_same_answer_are_named_together() -> None:
    same = LEFT + summary(SAID)
    graph = Ledger("graph0")
    graph.add(
        entry(
            considered=(f"add_norm: {same}", f"norm_scale: {same}", "norm_rotary: fuel is used up")
        )
    )
    said = [line.strip() for line in report.table([graph], width=100).splitlines()]
    assert "also looked at: add_norm, norm_scale: the same" in said
    assert "also looked at: norm_rotary: fuel is used up" in said


def test_table_counts_elementary_idioms(ledgers: list[Ledger]) -> None:
    assert report.table(ledgers, width=100).endswith(
        "in all: rms_norm 5 (rewritten 2, kept 2, refused 1)"
    )


def test_table_keeps_to_its_width(ledgers: list[Ledger]) -> None:
    ledgers[0].add(entry(reason="word " * 60))
    body = [line for line in report.table(ledgers, width=70).splitlines() if line.startswith(" ")]
    assert max(map(len, body)) <= 70


def test_table_of_nothing() -> None:
    assert "no graph went through the passes" in report.table([])
    assert report.every_site([]) == report.table([])
    graphs = [Ledger(f"graph{i}", looked_for=("rms_norm", "conv3d")) for i in range(2)]
    assert report.table(graphs) == report.every_site(graphs)
    for part in ("2 graphs compiled", "rms_norm, conv3d"):
        assert part in report.table(graphs)
    assert "1 graph compiled" in report.table(graphs[:1])


def test_every_site_has_a_line(ledgers: list[Ledger]) -> None:
    lines = report.every_site(ledgers).splitlines()
    assert len(lines) == 1 + 4
    assert re.split(r"\s{2,}", lines[1])[:6] == [
        *("graph0", "rms_norm", "kept", "blocks.0.norm", "models/wan.py:95", "bfloat16[2, 16]"),
    ]
    assert lines[4].split("  ")[0] == "graph1" and "  -  " in lines[4], (
        "a place that is not known is a dash"
    )


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, ledgers: list[Ledger]) -> None:
    target = tmp_path / "new" / "ledger.json"
    ledger.write_json(str(target), ledger.to_dict(ledgers))
    before = target.read_text()
    assert len(json.loads(before)["sites"]) == 4
    with pytest.raises(TypeError):
        ledger.write_json(str(target), {"sites": object()})
    assert target.read_text() == before
    assert [p.name for p in target.parent.iterdir()] == ["ledger.json"]


def test_reasons_are_never_cut(ledgers: list[Ledger]) -> None:
    reason = " ".join(f"word{i}" for i in range(200))
    ledgers[0].add(entry(idiom="conv3d", reason=reason))
    for text in (report.table(ledgers, width=60), report.every_site(ledgers)):
        assert reason in " ".join(text.split())


def test_a_ledger_survives_json(ledgers: list[Ledger]) -> None:
    for one in ledgers:
        assert Ledger.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_a_report_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "ledger.json")
    for _ in range(3):
        ledger.write_report(path, ledger.to_dict([]))
    assert len(caplog.records) == 1 and f"the report {path} cannot be written" in caplog.text
    ledger.write_report(str(tmp_path / "ledger.json"), ledger.to_dict([]))
    assert (tmp_path / "ledger.json").exists()
