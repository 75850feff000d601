"""docs/measured/support.md says what happens: each cell of its table is run here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rocm_passes.bench.pipeline_specs import PIPELINES
from tests.support import cells, table
from tests.support.cells import Cell, run
from tests.support.features import FEATURES

DOCUMENT = Path(__file__).parents[2] / "docs" / "measured" / "support.md"
#: Run in the fast suite: one of each kind (hooks, adapters, casts, sizes, gradients).
FAST = {
    ("flux", "LoRA, then compiled"),
    ("flux", "group offload, leaves"),
    ("ltx", "training, checkpointed"),
    ("qwen_image", "fp8 layerwise"),
}
CELLS = [
    pytest.param(
        pipeline,
        feature,
        id=f"{pipeline}-{feature}",
        marks=() if (pipeline, feature) in FAST else pytest.mark.exhaustive,
    )
    for pipeline in PIPELINES
    for feature in FEATURES
]


@pytest.mark.parametrize(("pipeline", "feature"), CELLS)
def test_a_pipeline_with_a_feature(pipeline: str, feature: str) -> None:
    if feature == "torchao int8" and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    stated = table.read(DOCUMENT).get((pipeline, feature), "not run")
    cell = run(pipeline, feature)
    assert cell.outcome not in ("WRONG", "FAILED")
    assert stated in ("not run", cell.outcome), cell


def test_no_cell_of_the_table_is_wrong_and_the_fast_ones_are_there() -> None:
    stated = table.read(DOCUMENT)
    assert set(stated) <= {(p, f) for p in PIPELINES for f in FEATURES}
    assert set(stated.values()) <= {"compiled", "in part", "eager", "not offered", "not run"}
    assert {stated[cell] for cell in FAST} <= {"compiled", "in part", "eager"}


def test_a_later_run_replaces_its_cells_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.md"
    path.write_text(f"{table.BEGIN}\n{table.END}\n")
    first = [Cell("sdxl", "two calls", "WRONG", "1 from eager"), Cell("flux", "two calls", "eager")]
    table.write(path, first, "torch 0")
    again = [Cell("sdxl", "two calls", "compiled"), Cell("sdxl", "VAE tiling", "compiled")]
    table.write(path, table.joined(table.kept(path), again), "torch 0")
    found = table.read(path)
    assert {place: outcome for place, outcome in found.items() if outcome != "not run"} == {
        ("sdxl", "two calls"): "compiled",
        ("sdxl", "VAE tiling"): "compiled",
        ("flux", "two calls"): "eager",
    }
    assert "3 of 198 cells were run" in path.read_text()


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    cells = [
        Cell("wan", "two calls", "compiled"),
        Cell("wan", "training", "eager", "why not"),
        Cell("ltx", "two calls", "not offered", "no f"),
        Cell("ltx", "training", "WRONG", "1e+00 from eager"),
    ]
    path = tmp_path / "t.md"
    path.write_text(f"head\n{table.BEGIN}\n{table.END}\ntail\n")
    table.write(path, cells, "torch 0")
    found = table.read(path)
    assert set(found) == {(p, f) for p in PIPELINES for f in FEATURES}
    assert {place: outcome for place, outcome in found.items() if outcome != "not run"} == {
        (c.pipeline, c.feature): c.outcome for c in cells
    }
    assert path.read_text().endswith("tail\n")


def test_a_reason_stands_once_however_many_blocks_it_is_of() -> None:
    cells = [
        Cell("wan", "training", "eager", "it moves; 2 of 2 blocks: it moves"),
        Cell("ltx", "training", "in part", "1 of 1 blocks: it moves"),
        Cell("flux", "training", "in part", "1 of 2 blocks: it moves"),
    ]
    notes = [line for line in table.render(cells, "").splitlines() if line[:1].isdigit()]
    assert notes[1:] == ["1. it moves", "2. 1 of 2 blocks: it moves"]


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.md"
    path.write_text("text\n")
    with pytest.raises(ValueError, match="support: begin"):
        table.write(path, [], "")


def test_what_raises_in_eager_too_is_not_a_fault_of_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises(session: object) -> None:
        raise NotImplementedError("no\nmore")

    monkeypatch.setattr(cells, "Session", lambda name: None)
    monkeypatch.setitem(FEATURES, "two calls", raises)  # type: ignore[arg-type]
    cell = run("flux", "two calls")
    assert cell.outcome == "not offered"
    assert cell.why == "it raises NotImplementedError without compiling too: no"
