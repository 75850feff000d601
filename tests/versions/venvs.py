"""A virtual environment with one version of torch, this package and the tools of its tests."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Written last: an environment without it was not finished.
READY = "ready"
#: Torch brings the Triton that it was built with, bounds setuptools, and must stay as it is.
NOT_OURS = ("torch", "triton", "setuptools")
#: Prints what a row of the table names. torch.__version__ has the build (+cpu, +cu130, +rocm7.1).
DESCRIBE = """
import importlib.metadata, importlib.util, platform, torch
triton = importlib.util.find_spec("triton") and importlib.metadata.version("triton")
print(platform.python_version(), torch.__version__, triton or "-")
"""


class WrongTorch(Exception):
    """The environment has another torch than it was made for."""


class Venv:
    """The environment in `folder`, for torch `wanted` (as "2.12")."""

    def __init__(self, folder: Path, wanted: str) -> None:
        self.folder, self.wanted = folder, wanted

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def is_ready(self) -> bool:
        return (self.folder / READY).exists()

    def make(self, interpreter: str) -> None:
        """Install what is not there. Raises CalledProcessError where a step fails, WrongTorch where
        the environment has another torch, or the test tools replaced it.
        """
        if not self.python.exists():
            subprocess.run([interpreter, "-m", "venv", str(self.folder)], check=True)
            self._pip(f"torch=={self.wanted}.*")
        _, before, _ = self.describe()
        constraints = self.folder / "constraints.txt"
        constraints.write_text(constraints_beside(before), encoding="utf-8")
        self._pip("-c", str(constraints), f"{ROOT}[test]")
        _, after, _ = self.describe()
        if after != before:
            raise WrongTorch(f"installing the test tools replaced torch {before} by {after}")
        (self.folder / READY).touch()

    def describe(self) -> tuple[str, str, str]:
        """Python, torch and Triton. Raises WrongTorch where torch is another than wanted."""
        done = subprocess.run(
            [self.python, "-c", DESCRIBE], check=True, capture_output=True, text=True, cwd="/"
        )
        python, torch, triton = done.stdout.split()
        if not re.match(re.escape(self.wanted) + r"\b", torch):
            raise WrongTorch(f"{self.folder} has torch {torch}, not {self.wanted}")
        return python, torch, triton

    def pytest(self, arguments: Sequence[str]) -> float:
        """Run pytest on this tree; the result is the processor time in seconds, its children's
        included.
        """
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        begun = os.times()
        subprocess.run(
            [self.python, "-m", "pytest", *arguments], check=False, cwd=ROOT, env=environment
        )
        ended = os.times()
        return (ended.children_user - begun.children_user) + (
            ended.children_system - begun.children_system
        )

    def _pip(self, *arguments: str) -> None:
        subprocess.run([self.python, "-m", "pip", "install", "-q", *arguments], check=True)


def constraints_beside(torch: str) -> str:
    """The versions of development, less those that torch decides; torch stays as it is: a version
    without its build (+cu130) takes the installed one, whose metadata may not name the build.
    """
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.split("==")[0] not in NOT_OURS]
    return "\n".join([*kept, f"torch=={torch.split('+')[0]}", ""])
