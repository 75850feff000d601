"""The tables of a run of pipelines: on the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rocm_passes.bench.pipeline_forms import is_ours, may_use_graphs, uses_graphs

Row = Mapping[str, Any]

#: Times that are compared with Inductor's: of a call, and of the device within it.
COMPARED = ("total", "device")
HEAD = (
    "form", "denoise ms", "decode ms", "total ms", "range", "device ms", "host ms denoise, forward",
    "launches", "GiB", "first call cold, warm s", "difference forward, decode, image",
)  # fmt: skip


def machine() -> dict[str, Any]:
    from rocm_passes.environment import environment

    return environment()


def text(rows: Sequence[Row]) -> str:
    """One table a pipeline, then the summary."""
    return "\n\n".join(
        [*(_table(name, of) for name, of in _by_pipeline(rows).items()), summary(rows)]
    )


def markdown(rows: Sequence[Row]) -> str:
    about = machine()
    told = ", ".join(
        f"{key} {about[key]}"
        for key in ("device", "torch", "triton", "diffusers")
        if about.get(key)
    )
    parts = [f"{told}. Medians; random weights."]
    for of in _by_pipeline(rows).values():
        lines = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in of if "total" in row)]
        parts.append(
            f"## {of[0]['note']}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        )
        parts += [f"{row['form']}: {_short(row['failed'])}" for row in of if "failed" in row]
    return "\n\n".join([*parts, "```\n" + summary(rows) + "\n```"]) + "\n"


def _by_pipeline(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["pipeline"], []).append(row)
    return found


def _table(name: str, rows: Sequence[Row]) -> str:
    lines = [HEAD, *(cells(row) for row in rows if "total" in row)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(HEAD))]
    body = ["  ".join(c.rjust(w) if at else c.ljust(w) for at, (c, w) in enumerate(zip(line,
    widths, strict=True)))
            for line in lines]  # fmt: skip
    failed = [f"{row['form']}: {_short(row['failed'])}" for row in rows if "failed" in row]
    return "\n".join([f"{name}: {rows[0]['note']}", *body, *failed])


def _short(reason: str) -> str:
    """The last lines of a log, on one line."""
    return " | ".join(reason.strip().splitlines()[-4:])[-400:]


def cells(row: Row) -> list[str]:
    away = row.get("difference", {})
    return [
        row["form"],
        *(_number(row.get(key)) for key in ("denoise", "decode", "total")),
        f"{_number(row.get('fastest'))}-{_number(row.get('slowest'))}",
        _number(row.get("device")),
        f"{_number(row.get('denoise_host'))}, {_number(row.get('forward_host'))}",
        f"{row['forward_launches']:.0f}" if "forward_launches" in row else "-",
        _number(row.get("peak_gib")),
        f"{_number(row.get('first_cold'))}, {_number(row.get('first_warm'))}",
        ", ".join(f"{away[key]:.1e}" for key in ("forward", "decode", "image") if key in away)
        or "-",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def summary(rows: Sequence[Row]) -> str:
    """compile_pipeline against the best form of Inductor, total and device time; where a mode was
    given, against the best form of that mode.
    """
    lines: list[str] = []
    ratios: dict[str, list[float]] = {key: [] for key in COMPARED}
    for name, of in _by_pipeline(rows).items():
        ours = [r for r in of if is_ours(r["form"]) and "total" in r]
        default = next((r for r in ours if r["form"] == "ours"), None)
        for row in ours:
            rival = best(of, "total", row["form"])
            if rival is None:
                continue
            found = _ratios(row, of)
            lines.append(f"{name} {_against(row, rival, found)}")
            if row is default:
                for key, ratio in found.items():
                    ratios[key].append(ratio)
    for key, of_key in ratios.items():
        if of_key:
            lines.append(
                f"geometric mean of `ours`, {key}: {geometric_mean(of_key):.3f} ({len(of_key)} "
                "pipelines)"
            )
    return (
        "\n".join(lines)
        or "nothing to compare: no pipeline ran both with Inductor and with this package"
    )


def _ratios(row: Row, of: Sequence[Row]) -> dict[str, float]:
    """Its times by Inductor's best ones, of a pipeline's rows."""
    found = {key: _ratio(row, best(of, key, row["form"]), key) for key in COMPARED}
    return {key: ratio for key, ratio in found.items() if ratio is not None}


def _against(row: Row, rival: Row, ratios: Mapping[str, float]) -> str:
    times = f"{row['total']:.0f} ms, Inductor's best ({rival['form']}) {rival['total']:.0f}"
    return ", ".join([f"{row['form']}: {times}", *(f"{k} {r:.3f}" for k, r in ratios.items())])


def best(rows: Iterable[Row], key: str, form: str) -> Row | None:
    """The plain Inductor form with the least time, of those that `form` is compared with."""
    plain = (r for r in rows if r["form"] != "eager" and not is_ours(r["form"]) and key in r)
    graphs = {uses_graphs(form), may_use_graphs(form)}
    return min(
        (r for r in plain if uses_graphs(r["form"]) in graphs),
        key=lambda r: float(r[key]),
        default=None,
    )


def _ratio(row: Row, rival: Row | None, key: str) -> float | None:
    return row[key] / rival[key] if rival is not None and row.get(key) and rival.get(key) else None


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
