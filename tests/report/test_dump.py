"""The dumped graphs: before, after each step that changed something, and after."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch._logging import _internal as torch_logging

from rocm_passes.options import parse
from rocm_passes.report.dump import VARIABLE, Dump, readable
from rocm_passes.report.ledger import Ledger


@pytest.fixture
def graph() -> fx.Graph:
    made = fx.Graph()
    x = made.placeholder("x")
    x.meta["val"] = torch.empty(3, 16)
    made.output((made.call_function(torch.ops.aten.neg.default, (x,)),))
    return made


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What goes into torch's structured trace."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    # torch sets `level` by its own means only.
    torch_logging.trace_log.addHandler(handler)
    yield records
    torch_logging.trace_log.removeHandler(handler)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def negate_again(graph: fx.Graph) -> None:
    (output,) = graph.find_nodes(op="output")
    (value,) = output.args[0]
    with graph.inserting_before(output):
        output.args = ((graph.call_function(torch.ops.aten.neg.default, (value,)),),)


def test_a_file_for_each_step_that_changed_the_graph(
    graph: fx.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    dump = Dump("graph7")
    dump.step("before", graph)
    dump.step("does nothing", graph)
    negate_again(graph)
    dump.step("negate/again", graph)
    dump.step("after", graph)
    dump.ledger(Ledger("graph7"))
    assert files(tmp_path) == ["00_before.py", "02_negate_again.py", "03_after.py", "ledger.json"]
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("graph7_")
    assert (folder / "00_before.py").read_text().count("aten.neg") == 1
    assert (folder / "02_negate_again.py").read_text().count("aten.neg") == 2
    assert (folder / "03_after.py").read_text() == (folder / "02_negate_again.py").read_text()
    assert json.loads((folder / "ledger.json").read_text())["graphs"][0]["graph"] == "graph7"


def test_a_text_says_dtype_shape_strides_and_device(graph: fx.Graph) -> None:
    assert 'x: "f32[3, 16][16, 1]cpu"' in readable(graph)
    compile(readable(graph), "dump", "exec")


def test_each_argument_has_a_line_and_files_are_named_as_in_the_ledger(graph: fx.Graph) -> None:
    made = fx.Graph()
    a, b = made.placeholder("a"), made.placeholder("b")
    for node, shape in ((a, (2, 3)), (b, (3,))):
        node.meta["val"] = torch.empty(shape)
    total = made.call_function(torch.ops.aten.add.Tensor, (a, b))
    total.meta["val"] = torch.empty(2, 3)
    file = "/opt/env/lib/python3.11/site-packages/diffusers/models/attention.py"
    total.meta["stack_trace"] = f'  File "{file}", line 7, in forward\n    return a + b'
    made.output(total)
    text = readable(made)
    first, second, *_ = text.splitlines()
    assert first == "def forward(self," and 'a: "f32[2, 3][3, 1]cpu",' in second
    assert "# File: diffusers/models/attention.py:7 in forward, code: return a + b" in text
    assert "site-packages" not in text
    compile(text, "dump", "exec")


def test_without_the_variable_and_without_tracing_no_text_is_made(
    graph: fx.Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch_logging.trace_log, "handlers", [])
    monkeypatch.setattr(
        "rocm_passes.report.dump.readable", lambda _: pytest.fail("a text was made")
    )
    dump = Dump("graph0")
    dump.step("before", graph)
    dump.ledger(Ledger("graph0"))


def test_steps_are_artifacts_of_the_structured_trace(
    graph: fx.Graph, artifacts: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    dump = Dump("graph7")
    dump.step("before", graph)
    dump.step("nothing", graph)
    dump.step("after", graph)
    # The first record of a process gives a number to the name of a file.
    made: dict[str, Any] = {
        r.metadata["artifact"]["name"]: r.payload  # type: ignore[attr-defined]
        for r in artifacts
        if "artifact" in r.metadata  # type: ignore[attr-defined]
    }
    assert list(made) == ["rocm_passes_graph7_00_before", "rocm_passes_graph7_02_after"]
    assert "aten.neg" in made["rocm_passes_graph7_00_before"]


def test_a_folder_that_cannot_be_made_costs_a_warning_once(
    graph: fx.Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    dump = Dump("graph0")
    dump.step("before", graph)
    dump.step("after", graph)
    dump.ledger(Ledger("graph0"))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert VARIABLE in caplog.text


def test_the_options_know_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "anywhere")
    parse({}, None)
