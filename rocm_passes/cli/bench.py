"""`rocm-passes bench`: run one of the benchmarks, the programs in rocm_passes/bench."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click

from rocm_passes.errors import nearest

PACKAGE = "rocm_passes.bench"
FOLDER = Path(__file__).resolve().parent.parent / "bench"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="run one of the benchmarks, on a GPU",
)
@click.argument("benchmark")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(benchmark: str, arguments: tuple[str, ...]) -> int:
    """Run one of the benchmarks, on a GPU.

    A name that is none of them is answered with the list; `rocm-passes bench NAME --help` shows the options of
    one.
    """
    known = benchmarks()
    if benchmark not in known:
        listed = ", ".join(known)
        raise click.UsageError(
            f"bench: there is no {benchmark!r}; there are {listed}{nearest(benchmark, known)}"
        )
    sys.argv = [f"rocm-passes bench {benchmark}", *arguments]
    runpy.run_module(f"{PACKAGE}.{benchmark}", run_name="__main__")
    return 0


def benchmarks() -> list[str]:
    """The programs among the modules of the package."""
    files = sorted(FOLDER.glob("*.py"))
    return [f.stem for f in files if '__name__ == "__main__"' in f.read_text(encoding="utf-8")]
