"""Run a part of the suite with each supported version of torch, and write the table.

    python -m tests.versions                    every version, each in its own environment
    python -m tests.versions --only 2.12,2.15 --write docs/measured/versions.md
    python -m tests.versions --only 2.13 --python python3.12

An environment is made where none is ready: FOLDER/torch2.12-py3.11. It takes up to 6 GB; --remove
deletes one after its run. Exit code 1 where a test failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.versions import suite, table
from tests.versions.venvs import ROOT, Venv

#: Of an interpreter, as in the name of an environment.
MINOR = "import sys; print('%d.%d' % sys.version_info[:2])"


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    python = _output(given.python, "-c", MINOR)
    runs = []
    for version in given.only.split(","):
        venv = Venv(Path(given.venvs).resolve() / f"torch{version}-py{python}", version)
        if not venv.is_ready:
            print(f"torch {version}: making {venv.folder}", flush=True)
            venv.make(given.python)
        run = run_suite(venv, given.all_cases, given.pytest)
        print(
            f"torch {run.torch}, Python {run.python}: {run.passed} passed, {run.failed} failed, "
            f"{run.skipped} skipped ({run.seconds:.0f} s)",
            *run.failures,
            sep="\n  ",
            flush=True,
        )
        runs.append(run)
        if given.write:  # After each version: a run that is ended keeps what it found.
            document = Path(given.write)
            table.write(document, table.joined(table.kept(document), [run]))
        if given.remove:
            shutil.rmtree(venv.folder)
    return int(any(run.failed for run in runs))


def run_suite(venv: Venv, all_cases: bool, more: Sequence[str]) -> table.Run:
    described = venv.describe()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        seconds = venv.pytest([*suite.arguments(all_cases), "-q", f"--junitxml={junit}", *more])
        return table.read_junit(junit, described, seconds)


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--only", default=",".join(suite.VERSIONS), help="versions of torch")
    made.add_argument("--python", default=sys.executable, help="the interpreter (this one)")
    made.add_argument(
        "--venvs", default=ROOT / ".versions", metavar="FOLDER", help="where environments are"
    )
    made.add_argument("--write", metavar="DOCUMENT", help="the document that holds the table")
    made.add_argument("--remove", action="store_true", help="delete each environment after its run")
    made.add_argument("--all-cases", action="store_true", help="all cases of each test")
    made.add_argument("pytest", nargs="*", help="more arguments of pytest, behind --")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
