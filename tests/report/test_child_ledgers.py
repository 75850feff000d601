"""Ledgers that child processes hand over, with this process in the part of the child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rocm_passes.cli.explain import compiled_graphs
from rocm_passes.report import child_ledgers
from rocm_passes.report.ledger import Ledger, clear_history, publish


def as_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child_ledgers.VARIABLE, f"{os.getpid() + 1}:{folder}")


def test_a_child_s_ledgers_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(tmp_path, monkeypatch)
    publish(Ledger("graph0"))
    monkeypatch.setenv("RANK", "3")
    publish(Ledger("graph1"))
    found = [(each["graph"], each["ranks"]) for each in child_ledgers.read(str(tmp_path))]
    assert found == [(f"graph0 of process {os.getpid()}", []), ("graph1", [3])]


def test_the_process_that_collects_hands_over_nothing(tmp_path: Path) -> None:
    with child_ledgers.collected_in(str(tmp_path)):
        publish(Ledger("graph0"))
    assert list(tmp_path.iterdir()) == []
    assert child_ledgers.VARIABLE not in os.environ


def test_a_line_that_was_cut_off_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(tmp_path, monkeypatch)
    publish(Ledger("graph0"))
    with open(tmp_path / f"{os.getpid()}.jsonl", "a") as file:
        file.write('{"graph": "gra')
    assert len(child_ledgers.read(str(tmp_path))) == 1


def test_ranks_that_a_script_starts_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(tmp_path, monkeypatch)
    publish(Ledger("alone"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        publish(Ledger(f"graph{rank}"))
    clear_history()
    names = [graph.graph for graph in compiled_graphs(str(tmp_path))]
    assert names == [f"alone of process {os.getpid()}", "graph0 of ranks 0-1"]


def test_a_folder_that_is_gone_costs_a_warning_and_no_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_child(tmp_path / "gone", monkeypatch)
    publish(Ledger("graph0"))
    assert "could not be handed" in caplog.text
