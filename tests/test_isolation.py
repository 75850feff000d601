"""A run of the tests reads and writes nothing in the user's own folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rocm_passes.tuning.store import default_path, update

ROOT = Path(__file__).parents[1]


def test_measured_choices_are_written() -> None:
    """Into the default file, which no other test sees; processes that a test starts have it too."""
    assert not default_path().exists()
    update(default_path(), {"a machine": {}})
    assert default_path().exists()
    script = "import os; print(os.environ['XDG_CACHE_HOME'])"
    said = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert Path(said.stdout.strip()) in default_path().parents


def test_a_run_leaves_the_user_s_folders_alone(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "home" / "cache"
    choices = cache / "rocm-passes" / "choices.json"
    choices.parent.mkdir(parents=True)
    choices.write_text("the user's own")
    before = sorted(home.rglob("*"))
    theirs = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    writing = f"{Path(__file__).relative_to(ROOT)}::{test_measured_choices_are_written.__name__}"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", writing],
        env={**theirs, "HOME": str(home), "XDG_CACHE_HOME": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
    assert sorted(home.rglob("*")) == before
    assert choices.read_text() == "the user's own"
