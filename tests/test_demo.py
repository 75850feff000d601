"""The demo, with one small model."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import torch

from examples import demo
from examples.progress import Progress
from tests.without_codegen import codegen_if_asked


def test_it_prints_the_ledger_and_leaves_it_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with codegen_if_asked():
        words = ["qwen_image", "--output", str(tmp_path / "out"), "--dtype", "float32"]
        assert demo.main(words) == 0
    printed = capsys.readouterr().out
    assert "[1/1] QwenImageTransformer2DModel: compiling it ..." in printed
    assert "rewritten by reference" in printed or "rewritten by triton" in printed
    assert str(tmp_path / "out" / "ledger.html") in printed
    if not torch.cuda.is_available():
        assert "[1/1] QwenImageTransformer2DModel: deciding as on gfx942 ..." in printed
        assert "by default on an AMD GPU:" in printed
        there = json.loads((tmp_path / "out" / "ledger-gfx942.json").read_text())
        assert {s["outcome"] for s in there["sites"]} & {"kept"}, "it shows reasons"
        assert "select='always'" not in {s["reason"] for s in there["sites"]}

    found = json.loads((tmp_path / "out" / "ledger.json").read_text())
    (row,) = found["models"]
    assert row["model"] == "QwenImageTransformer2DModel"
    assert row["graph_breaks"] == 0
    assert row["sites"] == len(found["sites"]) > 0
    assert {s["model"] for s in found["sites"]} == {"QwenImageTransformer2DModel"}
    # 24 bits of mantissa, and a model of two blocks: anything beyond is a wrong rewrite.
    assert row["error"] < 1e-5 and row["eager_error"] < 1e-5

    page = (tmp_path / "out" / "ledger.html").read_text()
    assert "QwenImageTransformer2DModel" in page


def test_error_is_relative_to_the_reference() -> None:
    reference = [torch.tensor([3.0, 4.0], dtype=torch.float64)]
    assert demo.error([torch.tensor([3.0, 4.5])], reference) == pytest.approx(0.1)
    assert demo.error(reference, reference) == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_on_a_terminal_and_then_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress("[1/5] compiling", terminal) as progress:
        time.sleep(0.25)
    shown = terminal.getvalue()
    assert "[1/5] compiling" in shown and "0:00:00" in shown
    assert shown.rstrip("\r").endswith("\x1b[2K"), "the line is cleared"
    assert progress.seconds >= 0.25


def test_progress_is_one_plain_line_elsewhere() -> None:
    file = io.StringIO()
    with Progress("compiling", file):
        pass
    assert file.getvalue() == "compiling ...\n"
