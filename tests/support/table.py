"""The support table in docs/measured/support.md: written from cells, and read back by the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rocm_passes.bench.pipeline_specs import PIPELINES
from tests.support.cells import Cell
from tests.support.features import FEATURES

BEGIN, END = "<!-- support: begin -->", "<!-- support: end -->"
SIGNS = {
    "compiled": "yes",
    "in part": "in part",
    "eager": "eager",
    "not offered": "-",
    "WRONG": "WRONG",
    "FAILED": "FAILED",
    "not run": "not run",
}


def kept(path: Path) -> list[Cell]:
    """The cells of earlier runs, which are kept beside the document."""
    beside = path.with_suffix(".json")
    return [Cell(**cell) for cell in json.loads(beside.read_text())] if beside.exists() else []


def joined(before: Iterable[Cell], now: Iterable[Cell]) -> list[Cell]:
    """Each place once, in the order of pipelines and features; a later run counts."""
    latest = {(cell.pipeline, cell.feature): cell for cell in [*before, *now]}
    return [latest[p, f] for p in PIPELINES for f in FEATURES if (p, f) in latest]


def write(path: Path, cells: Sequence[Cell], environment: str) -> None:
    """Replace the part between the markers, and keep the cells beside the document. Raises
    ValueError where the markers are missing.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = render(cells, environment)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    lines = ",\n".join(json.dumps(asdict(cell)) for cell in cells)
    path.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def render(cells: Sequence[Cell], environment: str) -> str:
    """Features are rows: they are more than the pipelines, and their names are longer. What was not
    run has its place too.
    """
    features, pipelines = list(FEATURES), list(PIPELINES)
    by_place = {(cell.feature, cell.pipeline): cell for cell in cells}
    notes: dict[str, int] = {}
    lines = [f"| | {' | '.join(pipelines)} |", f"|---|{'---|' * len(pipelines)}"]
    for feature in features:
        row = [_cell(by_place.get((feature, name)), notes) for name in pipelines]
        lines.append(f"| {feature} | {' | '.join(row)} |")
    known = sum(cell.outcome != "not run" for cell in by_place.values())
    lines += ["", f"{known} of {len(features) * len(pipelines)} cells were run.", ""]
    lines += [f"{environment}; CPU, float32.", ""]
    lines += [f"{number}. {why}" for why, number in notes.items()]
    return "\n".join(lines)


def _cell(cell: Cell | None, notes: dict[str, int]) -> str:
    if cell is None:
        return "not run"
    sign = SIGNS[cell.outcome]
    if cell.outcome == "compiled" or not cell.why:
        return sign
    return f"{sign} [{notes.setdefault(_note(cell.why), len(notes) + 1)}]"


def _note(why: str) -> str:
    """Each reason once, without the number of blocks where it is all of them."""
    reasons = (re.sub(r"^(\d+) of \1 blocks: ", "", reason) for reason in why.split("; "))
    return "; ".join(dict.fromkeys(reasons))


def read(path: Path) -> dict[tuple[str, str], str]:
    """(pipeline, feature) -> the outcome that the document states."""
    text = path.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    outcomes = {sign: outcome for outcome, sign in SIGNS.items()}
    return {
        (pipeline, row[0]): outcomes[re.sub(r" \[\d+\]$", "", sign)]
        for row in rows[1:]
        for pipeline, sign in zip(rows[0][1:], row[1:], strict=True)
    }
