"""What the documents show is run, and what they list is complete."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rocm_passes
from examples import write_docs
from rocm_passes import kernels, registry
from rocm_passes.ops.rms_norm import RMS_NORM
from tests.rewriting import rewrite

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"^```python\n# (?P<path>\S+\.py)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(document: str) -> dict[str, str]:
    """The code of a document's Python blocks, by the path in their first line."""
    return {m["path"]: m["code"] for m in _BLOCK.finditer((DOCS / document).read_text())}


def test_the_worked_example_of_adding_an_idiom_is_all_that_the_idiom_takes() -> None:
    """Its files are the package's own (see the test of generated parts below) and the last one is
    run with the other tests. Beside them only a line, a rule, and the shapes to compile for AMD
    know of it.
    """
    written = set(blocks("adding-an-idiom.md"))
    assert len(written) == 5 and "tests/idioms/test_gated_activation.py" in written
    package = Path(rocm_passes.__file__).parent
    naming = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*.py")
        if "gated_activation" in path.read_text()
    }
    rest = {
        *("rocm_passes/registry.py", "rocm_passes/policy/activation.py"),
        "rocm_passes/bench/isa_examples.py",
    }
    assert naming == {path for path in written if path.startswith("rocm_passes/")} | rest
    assert (package / "registry.py").read_text().count("gated_activation") == 2
    assert [i.name for i in registry.IDIOMS].count("gated_activation") == 1


def test_a_lowering_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example is laid beside the others, and the pass can take it."""
    (path, code), *others = blocks("adding-a-lowering.md").items()
    assert not others
    (tmp_path / Path(path).name).write_text(code)
    monkeypatch.setattr(kernels.aten, "__path__", [*kernels.aten.__path__, str(tmp_path)])
    kernels.register_lowerings()
    try:
        x, w = torch.randn(3, 16), torch.randn(16)
        taken = rewrite(rms_norm, x, w, options={"lowering": {"rms_norm": "aten"}})
        assert taken.only().lowering == "aten"
        torch.testing.assert_close(taken.result, rms_norm(x, w))
        kept = rewrite(rms_norm, x.bfloat16(), w, options={"lowering": {"rms_norm": "aten"}})
        assert kept.only().reason == "aten: it computes in float32 only"
    finally:
        RMS_NORM.lowerings[:] = [low for low in RMS_NORM.lowerings if low.name != "aten"]
        del sys.modules["rocm_passes.kernels.aten.rms_norm"]


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), w.to(x.dtype), 1e-6)


def test_generated_parts_are_up_to_date() -> None:
    for path, text in write_docs.documents().items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs-tables`"


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda p: p.name
)
def test_files_and_links_that_documents_name_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (document.parent / target).exists(), target
        # The site has the documents alone: a link out of them is a warning there, so an error.
        inside = DOCS in (document.parent / target).resolve().parents
        assert inside or document.name == "README.md", target
    for path in re.findall(
        r"`((?:rocm_passes|tests|docs|examples|benchmarks)/[\w/.-]+\.(?:py|md))`", text
    ):
        assert (ROOT / path).exists(), path


def test_architecture_names_every_room() -> None:
    text = (DOCS / "architecture.md").read_text()
    package = Path(rocm_passes.__file__).parent
    rooms = [p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()]
    rooms += [p.name for p in package.glob("*.py") if p.name != "__init__.py"]
    assert [room for room in rooms if room not in text] == []


def test_ledger_document_lists_every_field() -> None:
    text = (DOCS / "ledger.md").read_text()
    entry = rocm_passes.Entry("", {}, "kept", None, "", "", "", {}, ())
    for field in ["format", "environment", "graphs", "sites", "graph", *entry.to_dict()]:
        assert f"`{field}`" in text, field


@pytest.mark.parametrize("example", ["wan", "sdxl"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_ledger_s_page_is_shown_at_both_widths_and_in_both_schemes(
    example: str, width: int, scheme: str
) -> None:
    """Taken by tests/report/screenshots.py."""
    name = f"{example}-{width}-{scheme}.png"
    image = (DOCS / "images" / name).read_bytes()
    assert int.from_bytes(image[16:20], "big") == width and len(image) < 100_000
    assert f"images/{name}" in (DOCS / "index.md").read_text()
