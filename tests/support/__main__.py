"""Run cells of the support table, and write it.

    python -m tests.support                                  every pipeline with every feature
    python -m tests.support --only flux,sdxl --features "two calls;VAE tiling"
    python -m tests.support --write docs/measured/support.md   also put them into the table

Exit code 1 where a result was wrong or a compiled pipeline raised.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from rocm_passes.bench.pipeline_specs import PIPELINES
from tests import fast
from tests.support import table
from tests.support.cells import Cell, run
from tests.support.features import FEATURES


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    fast.without_guard_timing()
    fast.without_searches_for_garbage()
    path = Path(given.write) if given.write else None
    outcomes = []
    for pipeline in given.only.split(","):
        for feature in given.features.split(";"):
            begun = time.process_time()
            cell = _run(pipeline, feature)
            used = time.process_time() - begun
            print(
                *(pipeline, "|", feature, "|", cell.outcome, f"{cell.error:.0e}", cell.why),
                f"({used:.0f} s)",
                flush=True,
            )
            outcomes.append(cell.outcome)
            if path:  # After each cell: a run that is ended keeps what it found.
                table.write(path, table.joined(table.kept(path), [cell]), _environment())
    return int(any(outcome in ("WRONG", "FAILED") for outcome in outcomes))


def _run(pipeline: str, feature: str) -> Cell:
    try:
        return run(pipeline, feature)
    except Exception as error:
        return Cell(pipeline, feature, "FAILED", f"{type(error).__name__}: {error}")


def _environment() -> str:
    names = ("diffusers", "transformers", "accelerate", "peft", "torchao")
    found = [f"{name} {version(name)}" for name in names if importlib.util.find_spec(name)]
    return ", ".join((f"Python {platform.python_version()}", f"torch {torch.__version__}", *found))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.support", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--only", default=",".join(PIPELINES), help="pipelines")
    made.add_argument("--features", default=None, help="columns of the table")
    made.add_argument("--write", help="the document that holds the table")
    made.set_defaults(features=";".join(FEATURES))
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
