"""A user's own script in eager, plain Inductor and this backend: processes in turn, and what they
are compared by.

Each form runs once from an empty compile cache of its own, and then `rounds` times from the cache
that this left behind. Only the later runs are timed; the first one gives the cold first call, and
the ledger.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocm_passes.bench.script_calls import FORMS
from rocm_passes.bench.script_child import OUTPUTS

Figures = dict[str, Any]
#: That ranks which measure together wait for one another after a run, at least.
LEAST_SECONDS = 30.0
#: Lines of a failed script's output that are shown.
LAST_LINES = 12


@dataclass
class Form:
    """What the processes of one form said: the cold one, and the others; failed: why there are no
    more.
    """

    name: str
    cold: Figures | None = None
    warm: list[Figures] = field(default_factory=list)
    outputs: Path | None = None
    failed: str = ""

    def median(self, key: str) -> float | None:
        found = [f[key] for f in self.warm if f[key] is not None]
        return statistics.median(found) if found else None

    def row(self, reference: Path | None) -> Figures:
        """Medians of the warm processes, the cold one's first call, and the distance of the
        outputs.
        """
        found: Figures = {"form": self.name}
        if self.cold is not None:
            found |= {
                "first_cold_s": self.cold["first_s"],
                "callables": len(self.cold["callables"]),
            }
        if self.warm:
            found |= {key: self.median(key) for key in ("calls_ms", "total_s", "peak_gib")}
            found |= {"first_warm_s": self.median("first_s"), "runs": len(self.warm)}
        if self.outputs is not None and reference is not None:
            found["difference"] = difference(self.outputs, reference)
        if self.failed:
            found["failed"] = self.failed
        return found


class Together:
    """What ranks that measure together need of one another; here, a process alone."""

    def variables(self, number: int) -> dict[str, str]:
        """Of the environment of a run, the same on all ranks."""
        return {}

    def failed(self, number: int, mine: str, seconds: float) -> str:
        """Why a run has failed on any of the ranks, so that none goes on alone. Waits so long."""
        return mine


def measure(
    words: Sequence[str],
    forms: Sequence[str] = FORMS,
    rounds: int = 2,
    seconds: float = 3600.0,
    say: Callable[[str], None] = print,
    together: Together | None = None,
) -> tuple[list[Figures], Figures]:
    """The rows of the forms, and the ledger of `ours`. words: SCRIPT ARGUMENTS... or -m MODULE
    ARGUMENTS...

    No process starts after `seconds`, and one that runs longer is ended. together: this process is
    one of several ranks, which measure at once.
    """
    together = together or Together()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rocm-passes-bench-") as folder:
        found = [Form(name) for name in forms]
        for turn in range(1 + rounds):
            order = found[turn % len(found) :] + found[: turn % len(found)]
            for form in (f for f in order if not f.failed):
                left = seconds - (time.perf_counter() - began)
                number = turn * len(found) + found.index(form)
                _run(form, words, Path(folder), left, together.variables(number))
                left = seconds - (time.perf_counter() - began)
                form.failed = together.failed(number, form.failed, max(left, LEAST_SECONDS))
                run = "cold" if turn == 0 else f"run {turn} of {rounds}"
                say(f"{form.name}: {'failed' if form.failed else run}")
        reference = next((f.outputs for f in found if f.name == "eager"), None)
        rows = [form.row(reference) for form in found]
        ours = next((f.cold for f in found if f.name == "ours" and f.cold is not None), None)
        return rows, (ours or {}).get("ledger", {})


def _run(
    form: Form, words: Sequence[str], folder: Path, seconds: float, variables: Mapping[str, str]
) -> None:
    """One process. A failure, or the end of the time, is written into `failed`."""
    if seconds <= 0:
        form.failed = "" if form.warm else "not run: --seconds were over"
        return
    file = folder / f"{form.name}.json"
    file.unlink(missing_ok=True)
    env = {**os.environ, **variables, "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{form.name}.cache")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rocm_passes.bench.script_child", form.name, str(file), *words],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        form.failed = "" if form.warm else "not done within --seconds"
        return
    if done.returncode != 0 or not file.exists():
        last = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        form.failed = f"the script ended with code {done.returncode}:\n{last}"
        return
    figures = json.loads(file.read_text())
    form.outputs = Path(f"{file}{OUTPUTS}")
    if form.cold is None:
        form.cold = figures
    else:
        form.warm.append(figures)


def difference(outputs: Path, reference: Path) -> float | None:
    """Relative root mean square over the first outputs of all callables; None where they cannot be
    compared.
    """
    import torch

    found, expected = torch.load(outputs), torch.load(reference)
    if [t.shape for t in found] != [t.shape for t in expected] or not expected:
        return None
    a, b = (torch.cat([t.flatten() for t in each]) for each in (found, expected))
    return float(((a - b).norm() / b.norm()).item())


def slowest(by_rank: Mapping[int, Sequence[Figures]]) -> list[Figures]:
    """The rows of several ranks as one for each form: the slowest rank's time is the group's.

    So is the largest memory, and the largest distance. A form that failed on one rank has failed.
    """
    rows = []
    for same in zip(*by_rank.values(), strict=True):
        row: Figures = {"form": same[0]["form"]}
        for key in dict.fromkeys(k for r in same for k in r if k not in ("form", "failed")):
            found = [r[key] for r in same if r.get(key) is not None]
            row[key] = max(found, default=None)
        failed = dict.fromkeys(r["failed"] for r in same if "failed" in r)
        if failed:
            row["failed"] = "; ".join(failed)
        rows.append(row)
    return rows


HEAD = (
    "form",
    "calls ms",
    "script s",
    "first call cold s",
    "warm s",
    "peak GiB",
    "difference",
    "against inductor",
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells of the rows that have figures. `against inductor`: calls, of the faster of its two
    forms.
    """
    plain = [
        r["calls_ms"] for r in rows if r["form"] in ("inductor", "static") and r.get("calls_ms")
    ]
    return [_cells(row, min(plain, default=None)) for row in rows if "first_cold_s" in row]


def _cells(row: Mapping[str, Any], rival: float | None) -> list[str]:
    calls = row.get("calls_ms")
    numbers = (
        calls,
        row.get("total_s"),
        row["first_cold_s"],
        row.get("first_warm_s"),
        row.get("peak_gib"),
    )
    away = row.get("difference")
    return [
        row["form"],
        *("-" if n is None else f"{n:.2f}" for n in numbers),
        "-" if away is None else f"{away:.1e}",
        f"{calls / rival:.3f}" if calls and rival else "-",
    ]
