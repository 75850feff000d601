"""What two ranks of gloo find together: one pair of processes for all of these checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import REPOSITORY

Pair = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks' findings are, and the ledger of both: explain runs under torchrun."""
    folder = tmp_path_factory.mktemp("pair")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    explain = ["-m", "rocm_passes", "explain", "--json", str(folder / "ledger.json")]
    worker = ["-m", "tests.distributed.worker", str(folder)]
    done = subprocess.run(
        [*torchrun, *explain, *worker],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    (folder / "out.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The two ranks' findings of one check."""
    found = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    for each in found:
        assert "raised" not in each, each["raised"]
    return found
