"""The option `report`: the file after a compile, and a compile whose file cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.without_codegen import without_codegen


def compile_once(report: Path) -> None:
    norm = nn.RMSNorm(16)
    with torch.no_grad(), without_codegen():
        torch.compile(norm, backend="rocm_diffusion", options={"report": str(report)})(
            torch.ones(2, 16)
        )


def test_the_ledger_is_written_with_its_environment(tmp_path: Path) -> None:
    compile_once(tmp_path / "new" / "ledger.json")
    found = json.loads((tmp_path / "new" / "ledger.json").read_text())
    assert found["sites"][0]["idiom"] == "rms_norm"
    assert (
        found["environment"]["torch"] == torch.__version__ and found["environment"]["hip"] is None
    )


def test_a_file_that_cannot_be_written_does_not_fail_the_compile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    compile_once(tmp_path / "file" / "ledger.json")
    assert "cannot be written" in caplog.text
