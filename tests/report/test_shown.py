"""to_html, save and a notebook's view of an explanation and of compile_pipeline's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import rocm_passes
from rocm_passes import RocmPassesError, compile_pipeline
from tests.without_codegen import without_codegen


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_states) * timestep


ARGUMENTS = (torch.randn(2, 16), torch.ones(1))


@pytest.fixture(autouse=True)
def without_gradients_and_code() -> object:
    with torch.no_grad(), without_codegen():
        yield


def test_an_explanation_is_shown_saved_and_read_back(tmp_path: Path) -> None:
    explanation = rocm_passes.explain(Model(), *ARGUMENTS)
    page = explanation.to_html("My model")
    assert "<title>My model</title>" in page and "rms_norm" in page
    assert "iframe srcdoc=" in explanation._repr_html_()
    folder = tmp_path / "new"
    assert explanation.save(folder / "a.html").read_text() == explanation.to_html()
    assert json.loads(explanation.save(folder / "a.json").read_text()) == explanation.to_dict()
    assert explanation.save(str(folder / "a.txt")).read_text() == f"{explanation}\n"
    with pytest.raises(RocmPassesError, match=r"ends in \.html, \.json or \.txt, found 'a\.pdf'"):
        explanation.save("a.pdf")


def test_the_report_of_a_pipeline_has_its_parts_and_what_was_compiled_since(
    tmp_path: Path,
) -> None:
    before, model = nn.LayerNorm(16), Model()
    torch._dynamo.reset()
    torch.compile(before, backend="rocm_diffusion")(ARGUMENTS[0])
    report = compile_pipeline(model)
    assert report.ledgers == []
    model(*ARGUMENTS)
    found = report.to_dict()
    assert [g["graph"] for g in found["graphs"]] == [g.graph for g in report.ledgers]
    assert len(found["sites"]) == 1 and len(found["parts"]) == len(report.parts) == 1
    page = report.save(tmp_path / "report.html").read_text()
    assert 'class="parts"' in page and "compiled" in page and "100 %" in page
    assert "rms_norm" in report._repr_html_()
