"""The examples run with tiny pipelines, and decide as on a stated AMD target."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

#: Each example, and a site that its ledger must have.
EXAMPLES = {
    "wan": "rms_norm",
    "z_image": "rotary",
    "flux_lora_offload": "rotary",
    "sdxl": "group_norm",
}


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    example = importlib.import_module(f"examples.{name}")
    example.main(["--tiny", "--as-if", "gfx942", "--html", "ledger.html", *more])
    return (tmp_path / "ledger.html").read_text()


#: Z-Image differs from the others by its model, which tests of the zoo compile.
#: A video pipeline, and one with adapters and offloading; the demo runs SDXL.
FAST = ("wan", "flux_lora_offload")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.exhaustive) for n in EXAMPLES],
)
def test_it_runs_and_leaves_its_ledger(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "flux_lora_offload":
        pytest.importorskip("peft", reason="diffusers loads LoRA weights by peft")
    page = run(name, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "compiled" in printed and "page written to ledger.html" in printed
    assert EXAMPLES[name] in page and 'class="parts"' in page
    if name == "flux_lora_offload":
        assert "block" in printed, "offloaded by blocks, it is compiled by blocks"


def test_its_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    for name in EXAMPLES:
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"examples.{name}").main(["--help"])
        assert ended.value.code == 0
        assert "--tiny" in capsys.readouterr().out


NOTEBOOK = Path(__file__).parent.parent / "examples" / "ledger.ipynb"


def test_the_notebook_s_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, cell by cell: it needs no kernel."""
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(not c.get("outputs") for c in notebook["cells"]), "it is kept without outputs"
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "rms_norm" in (tmp_path / "wan-block.html").read_text()
    assert "<iframe" in names["explanation"]._repr_html_()  # type: ignore[attr-defined]


@pytest.mark.exhaustive
def test_the_notebook_shows_the_page_in_jupyter(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [o["data"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert any("<iframe" in data.get("text/html", "") for data in shown)
