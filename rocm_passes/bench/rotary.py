"""Rotary embedding, alone and after the q/k norm, at production shapes: ours, Inductor and the
memory floor.

    python -m rocm_passes.bench.rotary [--only NAME] [--json FILE] [--no-inductor]

Every row is first checked against the same formulas in float64. The floor is the time to move every
input once and every output once at the rate of a large copy measured in the same run. Calls are
captured in a CUDA graph; where the tensors would fit in the last-level cache, the calls rotate over
several sets of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rocm_passes.bench.rotary_cases import Case, Inputs, cases

CACHE_BYTES = 512 << 20  # a working set that no last-level cache of today holds
WARM_SECONDS = 0.2  # until then clocks are still rising, and a row would read a tenth too slow


@dataclass(frozen=True)
class Row:
    name: str
    floor_us: float
    ours_us: float
    inductor_us: float | None
    rms_error_ours: float
    rms_error_eager: float

    def __str__(self) -> str:
        words = (
            f"{self.name:72s} {self.floor_us:9.1f} {self.ours_us:9.1f} "
            f"{self.ours_us / self.floor_us:6.2f}"
        )
        if self.inductor_us is None:
            return words
        return f"{words} {self.inductor_us:9.1f} {self.inductor_us / self.floor_us:6.2f}"


HEAD = f"{'row':72s} {'floor us':>9s} {'ours':>9s} {'x':>6s} {'inductor':>9s} {'x':>6s}"


def nbytes(tensors: Inputs) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_rate() -> float:
    """Bytes per microsecond of a large device copy, counting what is read and what is written."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(5):
            target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / 5)
    return 2 * nbytes((source,)) / statistics.median(times[10:])


def time_us(call: Callable[..., object], sets: list[Inputs], repeats: int = 15) -> float:
    """Median time of one call in microseconds, from replays of a graph of a call on every set."""
    rounds = max(1, 4 // len(sets))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(*sets[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for inputs in sets:
                call(*inputs)
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_SECONDS:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / (rounds * len(sets)))
    graph.reset()
    return statistics.median(times)


def check(case: Case, inputs: Inputs) -> tuple[float, float]:
    """RMS error of ours and of eager against float64; raises where ours is worse by over one last
    place.
    """
    widened = tuple(t.to(torch.complex128) if t.is_complex() else t.double() for t in inputs)
    exact = case.original(*widened, wide=torch.float64)
    errors: list[tuple[float, float]] = []
    for ours, eager, truth in zip(case.ours(*inputs), case.original(*inputs), exact, strict=True):
        error, original_error = (ours.double() - truth).abs(), (eager.double() - truth).abs()
        # Of the largest channel of the head: the rotation carries that one's rounding into another.
        last_place = torch.finfo(ours.dtype).eps * truth.abs().amax(-1, keepdim=True)
        excess = ((error - original_error) / last_place).max().item()
        errors.append(
            (error.square().mean().sqrt().item(), original_error.square().mean().sqrt().item())
        )
        if not excess <= 1.0 or not errors[-1][0] <= 1.001 * errors[-1][1]:
            raise AssertionError(
                f"{case.name}: {excess:.2f} last places beyond eager; rms {errors[-1]}"
            )
    return max(e[0] for e in errors), max(e[1] for e in errors)


def measure(case: Case, rate: float, inductor: bool) -> Row:
    torch.manual_seed(0)
    inputs = case.make()
    ours_error, eager_error = check(case, inputs)
    torch.cuda.empty_cache()  # blocks of the float64 check
    moved = nbytes(inputs) + nbytes(case.ours(*inputs))
    sets = [inputs] + [case.make() for _ in range(min(8, CACHE_BYTES // moved))]
    ours_us = time_us(case.ours, sets)
    inductor_us = None
    if inductor:
        torch._dynamo.reset()
        inductor_us = time_us(torch.compile(case.original, dynamic=False), sets)
    torch.cuda.empty_cache()
    return Row(case.name, moved / rate, ours_us, inductor_us, ours_error, eager_error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--no-inductor", action="store_true", help="do not time plain Inductor")
    args = parser.parse_args()
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e6:.2f} TB/s")
    print(HEAD)
    rows = []
    for case in cases():
        if args.only not in case.name:
            continue
        row = measure(case, rate, not args.no_inductor)
        rows.append(row)
        print(row, flush=True)
    if args.json:
        report = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_tb_s": rate / 1e6,
        }
        args.json.write_text(
            json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
