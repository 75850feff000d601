"""Norms on one GPU: ours against plain Inductor and against the memory floor, in one run.

    python -m rocm_passes.bench.norms [--json FILE] [--table FILE] [--eager] [--only TEXT]

RMSNorm at every shape of norm_shapes.py; the other norms at a choice of theirs. First worker
processes compile all cases at once into a cache of this run's own; then they are timed one after
another on a GPU that does nothing else.

The floor is the bytes that must move (each input read once, each output written once) at the copy
rate measured in the same run. Times are medians of replayed CUDA graphs, and of TURNS that the ways
of a case take: what is timed first is timed on a GPU that has just been idle. Inputs and outputs
rotate among enough buffers that the L2 cache holds none of them, up to MOST_SETS: a case of less
than 0.5 MiB stays in it. Every result is compared with float64 before it is timed: its error may
exceed that of the eager original by one unit in the last place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.norm_cases import Case, Result, cases
from rocm_passes.bench.workers import Worker, WorkerFailed, reply

CACHE_BYTES = 256 * 2**20
MOST_SETS = 512
REPLAYS = 15
TURNS = 3


def bytes_moved(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_rate() -> float:
    """Bytes a millisecond, reads and writes together, of a 1 GiB device copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_ms(lambda: target.copy_(source))


def median_ms(launch: Callable[[], object]) -> float:
    for _ in range(3):
        launch()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def time_calls(call: Callable[..., Result], sets: Sequence[Result]) -> float:
    """Milliseconds a call: all input sets in one captured graph, every output kept, so that buffers
    rotate.
    """
    rounds = -(-8 // len(sets))
    for inputs in sets[:2]:
        call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept: list[Result] = []
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            kept = [call(*inputs) for inputs in sets]
    milliseconds = median_ms(graph.replay) / (rounds * len(sets))
    del kept
    return milliseconds


def in_turn(ways: Mapping[str, Callable[..., Result]], sets: Sequence[Result]) -> dict[str, float]:
    """Milliseconds a call of each way: the median of its turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, call in ways.items():
            times[name].append(time_calls(call, sets))
    return {name: statistics.median(found) for name, found in times.items()}


def check(case: Case, inputs: Result, got: Result) -> float:
    """Largest error against float64 over the eager original's own largest; raises where the bar is
    missed.
    """
    exact = case.original(*(t.double() for t in inputs))
    eager = case.original(*inputs)
    worst = 0.0
    for ours, theirs, reference in zip(got, eager, exact, strict=True):
        if ours.stride() != theirs.stride():
            print(f"  note: {case.name}: strides {ours.stride()}, eager's {theirs.stride()}")
        ulp = torch.finfo(ours.dtype).eps * reference.abs().clamp_min(torch.finfo(ours.dtype).tiny)
        error, allowed = (
            (ours.double() - reference).abs(),
            (theirs.double() - reference).abs().max(),
        )
        if not bool((error <= allowed + ulp).all()):
            raise AssertionError(
                f"{case.name}: error {error.max().item():.3g}, eager's {allowed.item():.3g}"
            )
        worst = max(worst, (error.max() / allowed.clamp_min(1e-30)).item())
    return worst


def compiled(case: Case) -> Callable[..., Result]:
    """The original by plain Inductor: the same call in every process, so that its cache knows it
    again.
    """
    torch._dynamo.reset()
    return torch.compile(case.original, dynamic=False)


def compile_worker(part: int, parts: int, only: str) -> None:
    """Compile every `parts`-th case, from `part` on, both ways; then say how many."""
    from torch._inductor import config

    # Where Inductor tries several configurations, one timed beside the other workers must not be
    # remembered.
    config.autotune_local_cache = False
    own = cases(only)[part::parts]
    failed = {}
    for case in own:
        try:
            inputs = case.inputs()
            case.ours(*inputs)
            compiled(case)(*inputs)
        except Exception as error:  # the parent meets it again, and reports it in its row
            failed[case.name] = str(error)[:500]
        inputs = ()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    reply(compiled=len(own) - len(failed), failed=failed)


def compile_ahead(count: int, at_once: int, only: str, folder: Path) -> None:
    """Compile `count` cases in up to `at_once` processes, into caches that this process and those
    then share.

    What a worker does not compile is compiled later, by this process.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    parts = min(at_once, count // 2)
    if parts < 2:
        return
    began = time.perf_counter()
    one_each = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    settings = [["--compile", str(part), str(parts), f"--only={only}"] for part in range(parts)]
    workers = [
        Worker("rocm_passes.bench.norms", words, one_each, folder / f"worker{part}.log")
        for part, words in enumerate(settings)
    ]
    done = 0
    for worker in workers:
        try:
            found = worker.wait()
        except WorkerFailed as error:
            print(f"a worker failed, its cases are compiled later: {error}")
        else:
            done += found["compiled"]
            for name, error in found["failed"].items():
                print(f"{name} not compiled ahead: {error}")
        worker.close()
    print(
        f"{done} of {count} cases compiled in {time.perf_counter() - began:.0f} s by {parts} "
        "processes"
    )


def measure(case: Case, rate: float, eager: bool) -> dict[str, Any]:
    inputs = case.inputs()
    got = case.ours(*inputs)
    relative_error = check(case, inputs, got)
    moved = bytes_moved([*inputs, *got])
    del got
    sets = [inputs] + [case.inputs() for _ in range(min(MOST_SETS - 1, CACHE_BYTES // moved))]
    ways = {"ours_ms": case.ours, "inductor_ms": compiled(case)} | (
        {"eager_ms": case.original} if eager else {}
    )
    return {"floor_ms": moved / rate, "error_vs_eager": relative_error, **in_turn(ways, sets)}


HEAD = (
    f"{'case':82} {'floor':>8} {'ours':>8} {'Inductor':>8} {'x/floor':>8} {'Inductor':>8} "
    f"{'error':>6}"
)


def line(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"{row['case']:82} FAILED {row['failed']}"
    floor, ours, theirs = row["floor_ms"], row["ours_ms"], row["inductor_ms"]
    return (
        f"{row['case']:82} {floor:8.4f} {ours:8.4f} {theirs:8.4f} {ours / floor:8.2f} "
        f"{theirs / floor:8.2f} {row['error_vs_eager']:6.2f}"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the shapes of models first, then the other cases by their names."""
    columns = ("ours ms", "Inductor ms", "ours over the floor", "Inductor over the floor")
    parts = []
    for heads, chosen in (
        (("model", "shape"), [row for row in rows if row["models"]]),
        (("computation",), [row for row in rows if not row["models"]]),
    ):
        if chosen:
            cells = [
                (*heads, *columns),
                ("---",) * (len(heads) + len(columns)),
                *map(_cells, chosen),
            ]
            parts.append("".join(f"| {' | '.join(line)} |\n" for line in cells))
    return "\n".join(parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    first = ("; ".join(row["models"]), str(row["shape"])) if row["models"] else (row["case"],)
    if "failed" in row:
        return (*first, "failed", "", "", "")
    floor, ours, theirs = row["floor_ms"], row["ours_ms"], row["inductor_ms"]
    return (*first, f"{ours:.3g}", f"{theirs:.3g}", f"{ours / floor:.2f}", f"{theirs / floor:.2f}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="also write the rows here")
    made.add_argument("--table", type=Path, help="also write the rows here, as Markdown")
    made.add_argument("--eager", action="store_true", help="time the eager original too")
    made.add_argument(
        "--only", default="", help="only cases whose name, or a model's name, contains this"
    )
    made.add_argument(
        "--at-once",
        type=int,
        default=min(16, os.cpu_count() or 2),
        help="processes that compile ahead, each with 1 to 5 GiB of the GPU; 0: none",
    )
    made.add_argument("--compile", type=int, nargs=2, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    raise_on_compile_error()
    given = parser().parse_args(argv)
    if given.compile:
        compile_worker(*given.compile, given.only)
        return
    with tempfile.TemporaryDirectory(
        prefix="norms-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        run(given, Path(folder))


def run(given: argparse.Namespace, folder: Path) -> None:
    """Compile, time, print and write. Raises SystemExit where a case failed."""
    began = time.perf_counter()
    chosen = cases(given.only)
    compile_ahead(len(chosen), given.at_once, given.only, folder)
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e9:.2f} TB/s")
    print(HEAD)
    rows = []
    for case in chosen:
        row: dict[str, Any] = {"case": case.name, "models": case.models, "shape": list(case.shape)}
        try:
            row |= measure(case, rate, given.eager)
        except (AssertionError, RuntimeError) as failure:
            # One failed case must not hide the others' numbers; it is in the table and in the exit
            # status.
            row["failed"] = str(failure)[:500]
        print(line(row), flush=True)
        rows.append(row)
        torch.cuda.empty_cache()
        # After each row, so that a run that is cut short leaves those it has.
        if given.json:
            given.json.write_text(json.dumps({"copy_bytes_per_ms": rate, "rows": rows}, indent=1))
        if given.table:
            given.table.write_text(table(rows), encoding="utf-8")
    print(f"{len(rows)} cases in {time.perf_counter() - began:.0f} s")
    if any("failed" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
