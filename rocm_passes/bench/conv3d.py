"""Conv3d calls of the video models: is the choice among the lowerings the right one?

    python -m rocm_passes.bench.conv3d          every way of a sample: time, memory, the choice
    python -m rocm_passes.bench.conv3d --all    all calls: the choice against all lowerings' times
    python -m rocm_passes.bench.conv3d --calls "96-96 3x3x3 2+4f 480x832;..." --dtype float32

With `--table FILE` the second also writes its rows as docs/conv3d.md has them.

Choices are measured first, in one process on a GPU that does nothing else. With `--all`, what was
chosen by measuring is held against a second, longer measurement, and what was chosen by rule
against the only one. Without it, each call of a sample is then compiled in every way, between
pointwise neighbours as in a causal video VAE, and the ways are timed in turn. Both print how far
the chosen lowering is from the best one, and of all calls the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.conv3d_built import Built, Call, compiled
from rocm_passes.bench.conv3d_calls import CALLS
from rocm_passes.bench.conv3d_choices import row
from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.workers import Admission, Worker, WorkerFailed, commands, reply
from rocm_passes.options import Options
from rocm_passes.policy.bounds import AGREEMENT
from rocm_passes.target import Target
from rocm_passes.tuning import rounds

#: Of each model the calls that take most of its time, and the odd ones.
SAMPLE = (
    "384-384 3x3x3 2+1f 60x104",
    "384-768 3x1x1 2+1f 60x104",
    "192-384 3x3x3 2+2f 120x208",
    "384-384 3x3x3 2+2f 120x208",
    "192-192 3x3x3 2+4f 240x416",
    "96-96 3x3x3 2+4f 480x832",
    "96-3 3x3x3 2+4f 480x832",
    "96-96 3x3x3 2+4f 720x1280",
    "1024-1024 3x3x3 2+2f 88x160",
    "256-256 3x3x3 2+4f 352x640",
    "3-96 3x3x3 2+4f 720x1280",
    "512-512 3x3x3 2+5f 64x64",
    "256-256 3x3x3 2+17f 256x256",
    "128-128 3x3x3 2+17f 256x256",
    "512-512 3x3x3 2+3f 60x90",
    "128-128 3x3x3 2+8f 480x720",
    "512-512 3x3x3 2+21f 16x22",
    "128-128 3x3x3 2+161f 128x176",
    "1024-1024 3x3x3 2+16f 16x24",
    "768-768 3x3x3 2+4f 60x106",
    "512-512 3x1x1 2+16f 88x160",
)

#: Lowering and layout; None is plain Inductor, "auto" is what the backend takes by itself.
WAYS: tuple[tuple[str | None, str], ...] = (
    (None, ""),
    ("auto", "auto"),
    ("direct", "channels_last"),
    ("taps", "channels_last"),
    ("unfold", "channels_last"),
    ("direct", "as_is"),
    ("taps", "as_is"),
)


def choose_worker(given: argparse.Namespace) -> None:
    """Measure the choices; where asked, also what they are held against."""
    options = Options(choices=str(given.choices), tune_seconds=given.seconds)
    for text in given.calls.split(";"):
        reply(**row(text, getattr(torch, given.dtype), options, Target.current(), given.all))


def compile_worker(text: str, given: argparse.Namespace) -> None:
    """Compile a call in every way; say so; then time them when told to."""
    import rocm_passes

    built: dict[str, tuple[Built, tuple[torch.Tensor, ...]]] = {}
    said = ""
    with torch.no_grad():
        for lowering, layout in WAYS:
            torch._dynamo.reset()
            way = "Inductor" if lowering is None else f"{lowering} {layout}"
            run, inputs = compiled(
                Call.of(text), lowering, layout, getattr(torch, given.dtype), given.device
            )
            run(*inputs)
            entries = [
                e for g in rocm_passes.history()[-1:] for e in g.entries if e.idiom == "conv3d"
            ]
            if lowering == "auto":
                said = (
                    f"{entries[0].lowering or entries[0].outcome}: {entries[0].reason}"
                    if entries
                    else ""
                )
            elif lowering is not None and [e.lowering for e in entries] != [lowering]:
                continue  # It can't take the call, which is then Inductor's once more.
            built[way] = run, inputs
        reply(ready=True)
        for _ in commands():
            reply(call=text, said=said, **time_ways(built, given.device))


def time_ways(
    built: Mapping[str, tuple[Built, tuple[torch.Tensor, ...]]], device: str
) -> dict[str, dict[str, float]]:
    """Milliseconds and peak MiB by way; a result's own memory counts, its inputs' does not."""
    work = {
        way: [lambda run=run, inputs=inputs: run(*inputs)] for way, (run, inputs) in built.items()
    }
    mib = {way: peak_mib(calls[0]) if device == "cuda" else 0 for way, calls in work.items()}
    on = torch.device(device)
    burst = rounds.GpuBursts(on, 400e-6) if device == "cuda" else rounds.bursts_on(on)
    times = rounds.in_turn(work, burst, rounds=15, seconds=1.0)
    return {"ms": {way: round(1000 * s, 4) for way, s in times.items()}, "peak_mib": mib}


def peak_mib(run: Callable[[], Any]) -> int:
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int((torch.cuda.max_memory_allocated() - before) // 2**20)


class Run:
    """The parent's side."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.began = time.perf_counter()
        self.folder = Path(tempfile.mkdtemp(prefix="conv3d-benchmark-"))
        self.choices = Path(given.choices or self.folder / "choices.json").resolve()
        whole = [text for texts in CALLS.values() for text in texts]
        self.calls = given.calls.split(";") if given.calls else whole if given.all else list(SAMPLE)
        for text in self.calls:
            Call.of(text)
        self.rows: list[dict[str, Any]] = []

    def __call__(self) -> None:
        self.choose()
        if not self.given.all:
            self.compile_and_time()
        print(verdict(self.rows), flush=True)

    def choose(self) -> None:
        worker = self.start("choose", "--choose", "--calls", ";".join(self.calls))
        try:
            for _ in self.calls:
                row = worker.wait()
                if self.given.all:
                    self.add(row)
        except WorkerFailed as error:
            print(f"choosing stopped: {error}")
        worker.close()
        print(f"choices measured after {self.elapsed():.0f} s", flush=True)

    def compile_and_time(self) -> None:
        admission = Admission(self.given.at_once, self.given.gib)
        workers: dict[str, Worker] = {}

        def compiled(text: str) -> str | None:
            gib = 2 + 10 * Call.of(text).gib(getattr(torch, self.given.dtype))
            with admission.admitted(gib, kept=gib / 2):
                workers[text] = self.start(text.replace(" ", "_"), "--compile", text)
                try:
                    workers[text].wait()
                except WorkerFailed as error:
                    return str(error)
            return None

        with ThreadPoolExecutor(len(self.calls)) as pool:
            failed = dict(zip(self.calls, pool.map(compiled, self.calls), strict=True))
        print(f"compiled after {self.elapsed():.0f} s", flush=True)
        for text in self.calls:
            try:
                if failed[text]:
                    raise WorkerFailed(failed[text])
                self.add(workers[text].ask("time"))
            except WorkerFailed as error:
                print(f"{text} failed: {error}")
            workers[text].close()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(line(row), flush=True)
        self.given.out.write_text(json.dumps(self.rows, indent=1))
        if self.given.table:
            self.given.table.write_text(table(self.rows), encoding="utf-8")

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def start(self, name: str, *arguments: str) -> Worker:
        env = {
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"cache.{name}"),
            "ROCM_PASSES_CHOICES": str(self.choices),
            "ROCM_PASSES_TUNE_SECONDS": "0",
        }
        settings = [
            "--dtype",
            self.given.dtype,
            "--device",
            self.given.device,
            "--choices",
            str(self.choices),
        ]
        settings += ["--all"] * self.given.all
        return Worker(
            "rocm_passes.bench.conv3d", [*arguments, *settings], env, self.folder / f"{name}.log"
        )


def held_against(row: Mapping[str, Any]) -> Mapping[str, float]:
    """The milliseconds that the choice is judged by: of the second measurement, where there
    is one.
    """
    found: Mapping[str, float] = row.get("again") or row.get("ms", {})
    return found


def away(row: Mapping[str, Any]) -> float | None:
    """The chosen one's time over the best one's, among the lowerings' or the compiled ways'; None
    if unknown.

    Among the lowerings': without the memory bound, which is a price of its own (`price`).
    """
    times, chosen = held_against(row), row["unbound"] if "by" in row else "auto auto"
    return times[chosen] / min(times.values()) if chosen in times else None


def price(row: Mapping[str, Any]) -> float:
    """What the default memory bound costs: the time of what it chooses over that of the choice
    without it.
    """
    times = held_against(row)
    chosen, unbound = row.get("chosen"), row.get("unbound")
    return times[chosen] / times[unbound] if chosen in times and unbound in times else 1.0


def line(row: Mapping[str, Any]) -> str:
    ratio = away(row)
    mib = row.get("mib" if "by" in row else "peak_mib") or {}
    cells = [
        f"{way.replace('channels_last', 'cl')} {ms:.3f}/{mib.get(way, 0)}"
        for way, ms in held_against(row).items()
    ]
    first = f"{row['call']:32} {'' if ratio is None else f'{ratio:.3f}':6} "
    said = row["said"] if "said" in row else _named(row, "unbound")
    if row.get("chosen") != row.get("unbound"):
        said += f"; within {row['bound_mib']} MiB {row['chosen']}, {price(row):.3f} of that"
    return first + "  ".join(cells) + f"  [{said}]"


def _named(row: Mapping[str, Any], which: str) -> str:
    """The lowering, and whether a rule has chosen it."""
    return (row[which] or "left to Inductor") + (", by rule" if row["by"] == "rule" else "")


#: Lowerings that have a column where they were measured.
BY_AITER = ("aiter_flydsl", "aiter_triton")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, by model: of each lowering milliseconds and MiB beside its tensors, and which one
    is chosen.
    """
    by_call = {row["call"]: row for row in rows}
    aiter = [n for n in BY_AITER if any(n in held_against(row) for row in rows)]
    columns = ("matmul", "conv2d", "triton", *aiter, "direct", "taps", "taps_tiled")
    columns = (*columns, "unfold", "tiled")
    lines = []
    for model, calls in CALLS.items():
        known = [by_call[call] for call in calls if call in by_call]
        if known:
            lines += [
                "",
                f"### {model}",
                "",
                f"| call | {' | '.join(columns)} | chosen | over the best |",
            ]
            lines += ["|---" * (len(columns) + 3) + "|"]
            lines += [_table_line(row, columns) for row in known]
    return "\n".join(lines) + "\n"


def _table_line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    times, mib = held_against(row), row.get("mib", {})
    cells = [f"{times[name]:.3g}, {mib.get(name, 0)}" if name in times else "" for name in columns]
    chosen, best = row["chosen"], min(times.values(), default=0.0)
    over = f"{times[chosen] / best:.3f}" if chosen in times else ""
    return f"| {row['call']} | {' | '.join(cells)} | {_named(row, 'chosen')} | {over} |"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many calls have a choice within the noise of the best, of each kind, and the worst of
    them.
    """
    known = [(row, ratio) for row in rows if (ratio := away(row)) is not None]
    if not known:
        return "no call has a choice to judge"
    worst, ratio = max(known, key=lambda each: each[1])
    said = f"{_near(known)} choices within {AGREEMENT.value:.0%} of the best"
    kinds = {
        kind: [each for each in known if each[0].get("by") == kind]
        for kind in ("measurement", "rule")
    }
    counts = [f"by {kind} {_near(those)}" for kind, those in kinds.items() if those]
    said += f" ({', '.join(counts)})" if counts else ""
    said += f"; the worst, {worst['call']}, is {ratio:.3f} of it"
    if len(known) < len(rows):
        said += f"; {len(rows) - len(known)} calls left to Inductor or not measured"
    dear = {row["call"]: price(row) for row in rows if row.get("chosen") != row.get("unbound")}
    return said + (f"; the memory bound changes {len(dear)} choices: {dear}" if dear else "")


def _near(judged: Sequence[tuple[Mapping[str, Any], float]]) -> str:
    return f"{sum(ratio <= 1 + AGREEMENT.value for _, ratio in judged)} of {len(judged)}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("conv3d.json"))
    made.add_argument("--all", action="store_true", help="all calls, not compiled")
    made.add_argument("--table", type=Path, help="write the rows of --all as Markdown")
    made.add_argument("--calls", default="", help="these calls, separated by semicolons")
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument(
        "--choices", help="file of measured choices to use and add to (default: a new one)"
    )
    made.add_argument("--seconds", type=float, default=120.0, help="time for measuring the choices")
    made.add_argument("--at-once", type=int, default=os.cpu_count() or 2)
    made.add_argument(
        "--gib", type=float, default=110.0, help="memory of the GPU to fill while compiling"
    )
    made.add_argument("--device", default="cuda", help="cpu, to try this program")
    made.add_argument("--choose", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--compile", help=argparse.SUPPRESS)
    return made


def main() -> None:
    raise_on_compile_error()
    given = parser().parse_args()
    if given.choose:
        choose_worker(given)
    elif given.compile:
        compile_worker(given.compile, given)
    else:
        Run(given)()


if __name__ == "__main__":
    main()
