"""docs/measured/versions.md: one row for each version, from runs that are kept beside it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.write_docs import between, markdown
from tests.versions import suite

HEAD = ("torch", "Python", "Triton", "passed", "failed", "skipped", "processor time")


@dataclass(frozen=True)
class Run:
    """One version: what pytest said, and the tests that failed. seconds: processor time."""

    torch: str
    python: str
    triton: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Minor versions: what a row stands for, in order."""
        return _minor(self.torch), _minor(self.python)


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def read_junit(path: Path, described: tuple[str, str, str], seconds: float) -> Run:
    """Raises ValueError where no test ran: that is no result."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    outcome = {case: {child.tag for child in case} for case in cases}
    failed = [case for case in cases if outcome[case] & {"failure", "error"}]
    skipped = sum("skipped" in found for found in outcome.values())
    if len(cases) == skipped + len(failed):
        raise ValueError(f"{path}: no test passed")
    python, torch, triton = described
    return Run(
        torch=torch,
        python=python,
        triton=triton,
        passed=len(cases) - len(failed) - skipped,
        failed=len(failed),
        skipped=skipped,
        seconds=round(seconds),
        failures=tuple(f"{case.get('classname')}::{case.get('name')}" for case in failed),
    )


def kept(document: Path) -> list[Run]:
    beside = document.with_suffix(".json")
    found = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else []
    return [Run(**{**each, "failures": tuple(each["failures"])}) for each in found]


def joined(before: Iterable[Run], now: Iterable[Run]) -> list[Run]:
    """Each pair of versions once, in order; a later run counts."""
    latest = {run.place: run for run in (*before, *now)}
    return [latest[place] for place in sorted(latest)]


def write(document: Path, runs: Sequence[Run]) -> None:
    text = document.read_text(encoding="utf-8")
    for part in ("versions", "part"):
        if f"<!-- {part}: begin -->" not in text:
            raise ValueError(f"{document}: expected <!-- {part}: begin --> and its end")
    text = between(text, "part", part_table())
    document.write_text(between(text, "versions", rendered(runs)), encoding="utf-8")
    kept_runs = json.dumps([asdict(run) for run in runs], indent=1)
    document.with_suffix(".json").write_text(kept_runs + "\n", encoding="utf-8")


def rendered(runs: Sequence[Run]) -> str:
    rows = [
        (
            *(run.torch, run.python, run.triton),
            *map(str, (run.passed, run.failed, run.skipped)),
            f"{run.seconds:.0f} s",
        )
        for run in runs
    ]
    there = {run.place[0] for run in runs}
    rows += [
        (version, "-", "-", "not run", "", "", "")
        for version in suite.VERSIONS
        if _minor(version) not in there
    ]
    failures = [f"- torch {run.torch}: `{name}`" for run in runs for name in run.failures]
    return "\n".join([markdown(HEAD, rows), *(["", "Failed:", "", *failures] if failures else [])])


def part_table() -> str:
    rows = ((what, "<br>".join(f"`{p}`" for p in paths)) for what, paths in suite.PART.items())
    return markdown(("what is checked", "tests"), rows)
