"""The documentation's site builds without a warning (`make docs`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rocm_passes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_page_is_built_under_the_version(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        built = site / ("index.html" if str(name) == "index" else f"{name}/index.html")
        assert f"rocm-passes {rocm_passes.__version__}" in built.read_text(), name


def test_the_api_reference_comes_from_docstrings(site: Path) -> None:
    text = (site / "api" / "index.html").read_text()
    for name in ("compile_pipeline", "explain", "Explanation", "Entry", "OptionError"):
        assert name in text, name
    assert "vae_dtype" in text and "Compile a diffusers pipeline" in text


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert "fonts.googleapis.com" not in text
