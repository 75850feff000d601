"""Conv3d calls of the video VAEs: is the choice among the lowerings the right one?

    python -m benchmarks.conv3d                compiled: every way, its time and memory, and the choice made
    python -m benchmarks.conv3d --all          all calls: the choice against a second, longer measurement
    python -m benchmarks.conv3d --calls "96-96 3x3x3 2+4f 480x832;..." --dtype float32

With `--table FILE` the second also writes its rows as docs/conv3d.md has them.

Choices are measured first, in one process on a GPU that does nothing else. Without `--all`, each call of a sample
is then compiled in every way, between pointwise neighbours as in a causal video VAE, and the ways are timed in
turn. Both print how far the chosen lowering is from the best one, and of all calls the worst.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.conv3d_calls import CALLS
from benchmarks.workers import Admission, Worker, WorkerFailed, commands, reply

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
#: A lowering is called as fast as the best within this.
NOISE = 1.03


@dataclass(frozen=True)
class Call:
    """cached, frames: what stands end to end in time."""

    channels: int
    out: int
    kernel: tuple[int, int, int]
    cached: int
    frames: int
    height: int
    width: int

    @staticmethod
    def of(text: str) -> Call:
        """From words as in benchmarks/conv3d_calls.py. Raises ValueError."""
        found = re.fullmatch(r"(\d+)-(\d+) (\d+)x(\d+)x(\d+) (\d+)\+(\d+)f (\d+)x(\d+)", text.strip())
        if found is None:
            raise ValueError(f'{text!r} is no call; one is written as "{SAMPLE[0]}"')
        channels, out, kt, kh, kw, *rest = map(int, found.groups())
        return Call(channels, out, (kt, kh, kw), *rest)

    def gib(self, dtype: torch.dtype) -> float:
        """Of input and output together."""
        pixels = (self.cached + self.frames) * self.height * self.width
        return pixels * (self.channels + self.out) * dtype.itemsize / 2**30


Compiled = Callable[..., torch.Tensor]


def build(
    call: Call, lowering: str | None, layout: str, dtype: torch.dtype, device: str
) -> tuple[Compiled, tuple[torch.Tensor, ...]]:
    """A causal convolution between pointwise neighbours, compiled, and its inputs."""
    from rocm_passes.backend import rocm_diffusion

    kt, kh, kw = call.kernel
    weight = torch.randn(call.out, call.channels, kt, kh, kw, device=device).to(dtype)
    weight /= (call.channels * kt * kh * kw) ** 0.5
    bias = torch.randn(call.out, device=device).to(dtype)

    def frames(count: int) -> torch.Tensor:
        x = torch.randn(1, call.channels, count, call.height, call.width, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last_3d) if layout in ("channels_last", "auto") else x

    def convolve(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(torch.cat([cache, F.silu(x)], 2), [kw // 2, kw // 2, kh // 2, kh // 2, 0, 0])
        return F.conv3d(x, weight, bias) + 1

    inputs = (frames(call.cached), frames(call.frames))
    if lowering is None:
        return torch.compile(convolve, dynamic=False), inputs
    options: dict[str, Any] = {"layout": layout}
    if lowering != "auto":
        options |= {"lowering": {"conv3d": lowering}, "tune_seconds": 0}
    return torch.compile(convolve, backend=rocm_diffusion, dynamic=False, options=options), inputs


def choose_worker(given: argparse.Namespace) -> None:
    """Measure the choices; where asked, all of them a second time and for longer."""
    from rocm_passes.options import Options
    from rocm_passes.selection import ahead, measure, rounds, store, tuning
    from rocm_passes.target import Target

    dtype, target = getattr(torch, given.dtype), Target.current()
    options = Options(choices=str(given.choices), tune_seconds=given.seconds)
    texts = given.calls.split(";")
    for text in texts:
        torch._dynamo.reset()
        with torch.no_grad(), ahead.noting() as noted:
            run, inputs = build(Call.of(text), "auto", "auto", dtype, given.device)
            run(*inputs)
        started = time.perf_counter()
        tuning.measure_noted(noted.calls, options, target, measure.measure)
        took = time.perf_counter() - started
        row: dict[str, Any] = {"call": text, "seconds": round(took, 2)}
        for each in noted.calls:
            found = store.store(options.choices).find(tuning.machine(target), each.key)
            row |= {"key": each.key, "ms": dict(found.ms) if found else {}}
            row |= {"mib": dict(found.mib), "skipped": dict(found.skipped)} if found else {}
            row |= chosen(each, target, options)
            if given.all:
                longer = {"rounds": 3 * rounds.ROUNDS, "hopeless": 1e9, "seconds": 4 * rounds.SECONDS}
                again = measure.measure(tuning.lowerings(each.able), each.values, patience=longer)
                row["again"] = dict(again.ms)
        reply(**row)


def chosen(each: Any, target: Any, options: Any) -> dict[str, Any]:
    """The lowering that a compile takes, the default memory bound in MiB, and what would be taken without one."""
    from rocm_passes.ops import conv3d
    from rocm_passes.selection import tuning

    bound = conv3d.usual_memory_mib(**each.values)
    able = tuning.lowerings(each.able)
    found, unbound = (
        tuning.pick(each.key, able, each.values, target, options, usual_mib=mib) for mib in (bound, math.inf)
    )
    names = {"chosen": found and found[0].name, "unbound": unbound and unbound[0].name}
    return names | {"bound_mib": round(bound)}


def compile_worker(text: str, given: argparse.Namespace) -> None:
    """Compile a call in every way; say so; then time them when told to."""
    import rocm_passes

    built: dict[str, tuple[Compiled, tuple[torch.Tensor, ...]]] = {}
    said = ""
    with torch.no_grad():
        for lowering, layout in WAYS:
            torch._dynamo.reset()
            way = "Inductor" if lowering is None else f"{lowering} {layout}"
            run, inputs = build(Call.of(text), lowering, layout, getattr(torch, given.dtype), given.device)
            run(*inputs)
            built[way] = run, inputs
            if lowering == "auto":
                entries = [e for g in rocm_passes.history()[-1:] for e in g.entries if e.idiom == "conv3d"]
                said = f"{entries[0].lowering or entries[0].outcome}: {entries[0].reason}" if entries else ""
        reply(ready=True)
        for _ in commands():
            reply(call=text, said=said, **time_ways(built, given.device))


def time_ways(
    built: Mapping[str, tuple[Compiled, tuple[torch.Tensor, ...]]], device: str
) -> dict[str, dict[str, float]]:
    """Milliseconds and peak MiB by way; a result's own memory counts, its inputs' does not."""
    from rocm_passes.selection import rounds

    work = {way: [lambda run=run, inputs=inputs: run(*inputs)] for way, (run, inputs) in built.items()}
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
        return Worker("benchmarks.conv3d", [*arguments, *settings], env, self.folder / f"{name}.log")


def away(row: Mapping[str, Any]) -> float | None:
    """The chosen one's time over the best one's: of the second measurement, or of the compiled ways.

    Of the second measurement: without the memory bound, which is a price of its own (`price`).
    """
    if "again" in row:
        times = row["again"]
        return times[row["unbound"]] / min(times.values()) if row.get("unbound") in times else None
    times = row.get("ms", {})
    return times["auto auto"] / min(times.values()) if "auto auto" in times else None


def price(row: Mapping[str, Any]) -> float:
    """What the default memory bound costs: the time of what it chooses over that of the choice without it."""
    times = row.get("again", {})
    chosen, unbound = row.get("chosen"), row.get("unbound")
    return times[chosen] / times[unbound] if chosen in times and unbound in times else 1.0


def line(row: Mapping[str, Any]) -> str:
    ratio = away(row)
    times = row.get("again") or row.get("ms", {})
    mib = row.get("mib") if "again" in row else row.get("peak_mib", {})
    cells = [
        f"{way.replace('channels_last', 'cl')} {ms:.3f}/{(mib or {}).get(way, 0)}"
        for way, ms in times.items()
    ]
    first = f"{row['call']:32} {'' if ratio is None else f'{ratio:.3f}':6} "
    said = row.get("said") or row.get("unbound") or "not measured: too small"
    if row.get("chosen") != row.get("unbound"):
        said += f"; within {row['bound_mib']} MiB {row['chosen']}, {price(row):.3f} of that"
    return first + "  ".join(cells) + f"  [{said}]"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, by model: of each lowering milliseconds of the second measurement and MiB beside its tensors."""
    by_call = {row["call"]: row for row in rows}
    columns = ("direct", "taps", "taps_tiled", "unfold", "tiled")
    lines = []
    for model, calls in CALLS.items():
        known = [by_call[call] for call in calls if call in by_call]
        if known:
            lines += ["", f"### {model}", "", f"| call | {' | '.join(columns)} | chosen | over the best |"]
            lines += ["|---" * (len(columns) + 3) + "|"]
            lines += [_table_line(row, columns) for row in known]
    return "\n".join(lines) + "\n"


def _table_line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    times, mib = row.get("again", {}), row.get("mib", {})
    cells = [f"{times[name]:.3g}, {mib.get(name, 0)}" if name in times else "" for name in columns]
    chosen, best = row.get("chosen"), min(times.values(), default=0.0)
    over = f"{times[chosen] / best:.3f}" if chosen in times else ""
    return f"| {row['call']} | {' | '.join(cells)} | {chosen or 'by rule'} | {over} |"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many calls have a choice within the noise of the best, and the worst of them."""
    known = {row["call"]: ratio for row in rows if (ratio := away(row)) is not None}
    if not known:
        return "no call has a choice to judge"
    worst = max(known, key=lambda call: known[call])
    near = sum(ratio <= NOISE for ratio in known.values())
    dear = {row["call"]: price(row) for row in rows if row.get("chosen") != row.get("unbound")}
    return (
        f"{near} of {len(known)} choices within {NOISE - 1:.0%} of the best; "
        f"the worst, {worst}, is {known[worst]:.3f} of it"
    ) + (f"; the memory bound changes {len(dear)} choices: {dear}" if dear else "")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("conv3d.json"))
    made.add_argument("--all", action="store_true", help="all calls, not compiled")
    made.add_argument("--table", type=Path, help="write the rows of --all as Markdown")
    made.add_argument("--calls", default="", help="these calls, separated by semicolons")
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--choices", help="file of measured choices to use and add to (default: a new one)")
    made.add_argument("--seconds", type=float, default=120.0, help="time for measuring the choices")
    made.add_argument("--at-once", type=int, default=os.cpu_count() or 2)
    made.add_argument("--gib", type=float, default=110.0, help="memory of the GPU to fill while compiling")
    made.add_argument("--device", default="cuda", help="cpu, to try this program")
    made.add_argument("--choose", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--compile", help=argparse.SUPPRESS)
    return made


def main() -> None:
    given = parser().parse_args()
    if given.choose:
        choose_worker(given)
    elif given.compile:
        compile_worker(given.compile, given)
    else:
        Run(given)()


if __name__ == "__main__":
    main()
