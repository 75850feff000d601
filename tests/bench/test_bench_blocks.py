"""What the benchmark of blocks writes. Its timing needs a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from rocm_passes.bench import blocks
from rocm_passes.bench.blocks import Row, Times


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    return [row("one_block", 1.0), row("another_block", 1.6)]


def row(name: str, ours: float) -> Row:
    times = {"eager": Times(float("nan"), 3, 1), "inductor": Times(2, 2, 1)}
    times |= {"ours": Times(ours, 1, 1), "also": Times(2.5, 1, 1)}
    away = {"inductor": 1e-3, "ours": 2e-3, "also": 3e-3}
    return Row(name, times, away, ["a site"], {"ours": {"kernel": [1.0, 2.0]}})


def test_the_table_has_each_form_of_ours_beside_inductor(rows: list[Row]) -> None:
    lines = blocks.table(rows, "the note").splitlines()
    assert lines[0] == "the note"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert {len(line) for line in cells} == {9}
    assert cells[2] == [
        *("one_block", "2.000", "1.000", "2.500", "2.000", "0.800"),
        *("1.00e-03", "2.00e-03", "3.00e-03"),
    ]
    # sqrt(2 * 1.25), and 0.8 twice.
    assert cells[-1][:6] == ["geometric mean", "", "", "", "1.581", "0.800"]


def test_what_is_shown_of_a_block_leaves_eager_out_of_the_gains(rows: list[Row]) -> None:
    shown = blocks.shown(rows[0])
    assert "against Inductor: ours 2.000x, also 0.800x" in shown
    assert shown.splitlines()[-1].strip() == "a site"


def test_the_document_is_json_with_every_row(rows: list[Row]) -> None:
    found = json.loads(json.dumps(blocks.document(rows)))
    assert [each["name"] for each in found["rows"]] == ["one_block", "another_block"]
    assert found["rows"][0]["kernels"] == {"ours": {"kernel": [1.0, 2.0]}}
    assert (found["device"], found["torch"]) == ("a card", torch.__version__)


def test_every_block_of_the_list_is_one_that_can_be_built() -> None:
    from rocm_passes.bench.models import workload

    assert [workload(name).name for name in blocks.BLOCKS] == list(blocks.BLOCKS)
