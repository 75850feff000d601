"""A run of the tests reads and writes nothing in the user's own folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rocm_passes.selection.store import default_path, update

ROOT = Path(__file__).parents[1]
#: They compile, run kernels, start a process that measures, and write measured choices.
WRITING = (
    "tests/test_benchmark_conv3d.py::test_every_call_has_a_choice_and_the_times_of_all_lowerings",
    "tests/test_isolation.py::test_measured_choices_are_written",
)


def test_measured_choices_are_written() -> None:
    """Into the default file, which no other test sees."""
    assert not default_path().exists()
    update(default_path(), {"a machine": {}})
    assert default_path().exists()


def test_a_run_leaves_the_user_s_folders_alone(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "home" / "cache"
    choices = cache / "rocm-passes" / "choices.json"
    choices.parent.mkdir(parents=True)
    choices.write_text("the user's own")
    before = sorted(home.rglob("*"))
    theirs = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WRITING],
        env={**theirs, "HOME": str(home), "XDG_CACHE_HOME": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout
    assert sorted(home.rglob("*")) == before
    assert choices.read_text() == "the user's own"
