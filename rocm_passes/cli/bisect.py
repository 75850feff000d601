"""`rocm-passes bisect`: find the rewrite that changes a script's result, each run in a process of
its own.
"""

from __future__ import annotations

import importlib
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from rocm_passes import torch_version
from rocm_passes.cli.script import Script, ScriptCommand, hint_at_misplaced
from rocm_passes.errors import RocmPassesError, plural

FOUND, NOTHING_FOUND = 1, 0
FUEL = "ROCM_PASSES_FUEL_TOTAL"
ON_COMPILE_ERROR = "ROCM_PASSES_ON_COMPILE_ERROR"
#: More than any process rewrites.
UNBOUNDED = 10**9
#: What a check command finds in its environment: the file with the run's standard output.
OUTPUT = "ROCM_BISECT_OUTPUT"


class BisectError(RocmPassesError):
    """The runs do not allow a bisection."""


@dataclass(frozen=True)
class Run:
    """One run of the script. good: did the check pass? sites: the entries of the ledger that were
    rewritten.
    """

    good: bool
    output: str
    sites: tuple[Mapping[str, Any], ...] = ()
    code: int = 0
    error: str = field(default="", repr=False)

    @property
    def rewrites(self) -> int:
        return max((int(site["number"]) for site in self.sites), default=0)


@click.command(cls=ScriptCommand, short_help="find the rewrite that changes a script's result")
@click.option(
    "--check",
    metavar="CHECK",
    help="A command (exit code 0: right) or MODULE:FUNCTION, called with the script's output "
    "(true: right). "
    "Default: output and exit code are compared with those of a run without rewrites, numbers "
    "within 1 %.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="End a run after this long."
)
@click.option(
    "-m", "module", metavar="MODULE", help="Run a module, as python -m does; it ends the options."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def bisect(
    check: str | None, timeout: float | None, module: str | None, words: tuple[str, ...]
) -> int:
    """Run a script again and again with fewer rewrites, until one is left that makes its result
    wrong.

    Each run is a process of its own, past the caches. A command given as --check runs after each
    run, and finds the script's standard output in the file that ROCM_BISECT_OUTPUT names. Exits
    with 1 where a rewrite was found, and with 0 where the result is right with all of them.
    """
    torch_version.check()
    script = Script.find(module, words)
    hint_at_misplaced("bisect", ("--check", "--timeout"), script.arguments)
    command = [sys.executable, *(("-m", module, *words) if module else words)]
    judge = judge_of(check)

    rewrites = 0

    def run(fuel: int) -> Run:
        nonlocal rewrites
        found = _run(command, fuel, judge, timeout)
        rewrites = max(rewrites, found.rewrites)
        ended = f", exit code {found.code}" if found.code else ""
        click.echo(f"ran with {plural(found.rewrites, 'rewrite')}{ended}")
        return found

    found = search(run, compares=check is None)
    if rewrites == 0:
        click.echo("no site was rewritten: `rocm-passes explain` says why")
    return _told(found)


def search(run: Callable[[int], Run], compares: bool) -> Run | None:
    """The run with the fewest rewrites whose result is wrong, or None. compares: with the run
    without rewrites.
    """
    plain = run(0)
    _check_plain(plain, compares)

    def is_right(tried: Run) -> bool:
        return alike(plain, tried) if compares else tried.good

    wrong = run(UNBOUNDED)
    if is_right(wrong):
        return None
    if wrong.rewrites == 0:
        raise BisectError(
            f"the script rewrites nothing, and its result differs from run to run{wrong.error}"
        )
    return _narrowed(run, is_right, wrong)


def _check_plain(plain: Run, compares: bool) -> None:
    """The run without rewrites."""
    if compares and plain.code:
        raise BisectError(
            f"the script ends with exit code {plain.code} without any rewrite, so none of them is "
            f"the cause{plain.error}"
        )
    if not compares and not plain.good:
        raise BisectError(
            f"the result is wrong without any rewrite, so none of them is the cause{plain.error}"
        )


def _narrowed(run: Callable[[int], Run], is_right: Callable[[Run], bool], wrong: Run) -> Run:
    """The first wrong run: with one rewrite less the result is right."""
    right = 0
    while wrong.rewrites - right > 1:
        middle = (right + wrong.rewrites) // 2
        tried = run(middle)
        if is_right(tried):
            right = middle
        elif tried.rewrites != middle:
            raise BisectError(
                f"a run with {plural(middle, 'rewrite')} allowed has made "
                f"{tried.rewrites}{tried.error}"
            )
        else:
            wrong = tried
    return wrong


#: Numbers of two outputs are alike within this part of the larger: rewrites may round elsewhere
#: than the graph.
TOLERANCE = 0.01


def alike(a: Run, b: Run) -> bool:
    """Have two runs ended alike, with outputs of the same words, and of numbers within
    TOLERANCE?
    """
    words = [run.output.split() for run in (a, b)]
    return a.code == b.code and len(words[0]) == len(words[1]) and all(map(_same_word, *words))


def _same_word(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return math.isclose(float(a.strip("[](),")), float(b.strip("[](),")), rel_tol=TOLERANCE)
    except ValueError:
        return False


def _told(found: Run | None) -> int:
    if found is None:
        click.echo("the result is right with every rewrite")
        return NOTHING_FOUND
    number = found.rewrites
    click.echo(f"\nrewrite {number} makes the result wrong:")
    for site in found.sites:
        if site["number"] == number:
            click.echo(
                f"  {site['idiom']} by {site['lowering']} at {site['location'] or site['module']}"
            )
            click.echo(f"  in {site['graph']}, because: {site['reason']}")
            click.echo("\n".join(f"  note: {note}" for note in site["notes"]) or "  no notes")
            click.echo(f"  to leave the idiom out: ROCM_PASSES_IDIOMS=-{site['idiom']}")
    return FOUND


Judge = Callable[[str, int], bool]


def _run(command: Sequence[str], fuel: int, judge: Judge, timeout: float | None) -> Run:
    """One run, with at most `fuel` rewrites in each of its processes."""
    from rocm_passes.report import child_ledgers

    with (
        tempfile.TemporaryDirectory(prefix="rocm-passes-bisect-") as folder,
        child_ledgers.collected_in(folder),
    ):
        # A rewrite with which a graph does not compile is what is looked for, too.
        environment = {**os.environ, FUEL: str(fuel), ON_COMPILE_ERROR: "raise"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return Run(False, "", (), 1, ": it took longer than --timeout")
        graphs = child_ledgers.read(folder)
        sites = [
            {**site, "graph": g["graph"]} for g in graphs for site in g["sites"] if site["number"]
        ]
        last = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        good = judge(done.stdout, done.returncode)
        return Run(
            good, done.stdout, tuple(sites), done.returncode, "".join(f": {line}" for line in last)
        )


def judge_of(check: str | None) -> Judge:
    if check is None:
        return lambda output, code: True
    module, colon, name = check.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), name)):
        return _of_function(module, name)
    words = shlex.split(check)
    if not words:
        raise click.UsageError("--check: expected a command, or MODULE:FUNCTION")
    return lambda output, code: code == 0 and _passes(words, output)


def _of_function(module: str, name: str) -> Judge:
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--check: {error}") from error
    finally:
        sys.path.remove(os.getcwd())

    def judge(output: str, code: int) -> bool:
        try:
            return code == 0 and bool(function(output))
        except AssertionError:
            return False
        except Exception as error:
            raise BisectError(f"--check: {name} raised {type(error).__name__}: {error}") from error

    return judge


def _passes(words: Sequence[str], output: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="rocm-passes-check-") as folder:
        file = Path(folder) / "output"
        file.write_text(output, encoding="utf-8")
        try:
            done = subprocess.run(
                words, env={**os.environ, OUTPUT: str(file)}, capture_output=True, text=True
            )
        except OSError as error:
            raise BisectError(
                f"--check: {words[0]!r} cannot be run: {error.strerror or error}"
            ) from error
        return done.returncode == 0
