"""A drawing of the ledger (report/drawing.py) as SVG: steps in rows, data flowing downwards."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rocm_passes.report.drawing import Step

ROW, HEIGHT, GAP, MARGIN = 54, 34, 14, 6
#: Room at the right for edges that pass other rows.
ASIDE = 24
#: Widths of a letter of the two lines, in the style sheet's fonts.
LABEL_LETTER, VALUE_LETTER = 7.2, 5.6


def svg(steps: Sequence[Step], title: str) -> str:
    """The drawing with its colours left to the style sheet; empty for no steps."""
    if not steps:
        return ""
    rows = _rows(steps)
    widths = [_width(step) for step in steps]
    across = max(sum(widths[i] for i in row) + GAP * (len(row) - 1) for row in rows) + 2 * MARGIN
    down = ROW * len(rows) - (ROW - HEIGHT) + 2 * MARGIN
    at = _places(rows, widths, steps, across)
    edges = "".join(
        _edge(at[source], at[target], across)
        for target, step in enumerate(steps)
        for source in step["inputs"]
    )
    if any(at[t][1] - at[s][1] > ROW for t, step in enumerate(steps) for s in step["inputs"]):
        across += ASIDE
    boxes = "".join(
        _box(step, *at[i], width) for i, (step, width) in enumerate(zip(steps, widths, strict=True))
    )
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {across:.0f} {down:.0f}" '
        f'width="{across:.0f}" height="{down:.0f}">{edges}{boxes}</svg>'
    )


def _rows(steps: Sequence[Step]) -> list[list[int]]:
    """The steps' positions by row. An input stands right above its first reader."""
    depth = [0] * len(steps)
    for i, step in enumerate(steps):
        depth[i] = 1 + max((depth[j] for j in step["inputs"]), default=-1)
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        for source in step["inputs"]:
            readers.setdefault(source, []).append(i)
    for i, step in enumerate(steps):
        if step["kind"] == "input" and i in readers:
            depth[i] = min(depth[r] for r in readers[i]) - 1
    rows: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for i, row in enumerate(depth):
        rows[row].append(i)
    return rows


def _places(
    rows: Sequence[list[int]], widths: Sequence[float], steps: Sequence[Step], across: float
) -> dict[int, tuple[float, float]]:
    """The middle of each box's top. A row is ordered by the places of what its steps read."""
    at: dict[int, tuple[float, float]] = {}
    for number, row in enumerate(rows):

        def wanted(i: int) -> float:
            above = [at[j][0] for j in steps[i]["inputs"] if j in at]
            return sum(above) / len(above) if above else across

        ordered = sorted(row, key=wanted)
        left = (across - sum(widths[i] for i in ordered) - GAP * (len(ordered) - 1)) / 2
        for i in ordered:
            at[i] = (left + widths[i] / 2, MARGIN + ROW * number)
            left += widths[i] + GAP
    return at


def _width(step: Step) -> float:
    wanted = max(len(step["label"]) * LABEL_LETTER, len(step["value"]) * VALUE_LETTER) + 16
    return max(60.0, wanted)


def _edge(source: tuple[float, float], target: tuple[float, float], across: float) -> str:
    """From the bottom of a box to the top of another; past other rows, round their right side."""
    (x0, y0), (x1, y1) = (source[0], source[1] + HEIGHT), target
    start, end = f"M{x0:.0f} {y0:.0f}", f"{x1:.0f} {y1:.0f}"
    if y1 - y0 < ROW:
        middle = (y0 + y1) / 2
        return f'<path d="{start}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {end}"/>'
    side = across + ASIDE / 2
    upper, lower = y0 + 2 * GAP, y1 - 2 * GAP
    return (
        f'<path d="{start}C{x0:.0f} {y0 + GAP:.0f} {side:.0f} {y0:.0f} {side:.0f} {upper:.0f}'
        f'L{side:.0f} {lower:.0f}C{side:.0f} {y1:.0f} {x1:.0f} {y1 - GAP:.0f} {end}"/>'
    )


def _box(step: Step, x: float, y: float, width: float) -> str:
    label, value = escape(step["label"]), escape(step["value"])
    kind = "ours" if step["label"].startswith("rocm_passes.") else step["kind"]
    return (
        f'<g class="{kind}"><rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" '
        f'height="{HEIGHT}" rx="6"/><text x="{x:.0f}" y="{y + 15:.0f}">{label}</text>'
        f'<text class="value" x="{x:.0f}" y="{y + 28:.0f}">{value}</text></g>'
    )
