"""Runs the command as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import forked

#: The scripts of these tests import from `tests`, which a script's own folder does not have.
REPOSITORY = Path(__file__).parents[2]


def run(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [sys.executable, "-m", "rocm_passes", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )
