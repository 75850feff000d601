"""Whole transformer blocks at production size: eager, plain Inductor and this backend in one run.

    python -m benchmarks.blocks [--only NAME,NAME] [--json FILE] [--idioms LIST] [--seconds N]

Each block is a real one with the inputs that its model gives it (benchmarks/models.py). Times are medians of
single calls by device events, both compiled forms in turn, warmed up until clocks are steady. `difference` is
the distance of a compiled result from eager's, relative to its norm: for equal numerics ours must not exceed
Inductor's by more than a tenth. The run fails where a kernel of ours fell back to plain torch.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Prepared, workload
from rocm_passes import history
from rocm_passes.backend import rocm_diffusion
from tests.zoo.case import tensors_in

BLOCKS = (
    "qwen_image_block", "z_image_block", "wan_block", "flux_double", "hunyuan_video_double",
    "flux_single", "flux2_double", "flux2_single", "hunyuan_video_single", "ltx_block", "wan_block_720p",
)  # fmt: skip
REPEATS = 21
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """Milliseconds, and distances from eager."""

    name: str
    eager_ms: float
    inductor_ms: float
    ours_ms: float
    inductor_difference: float
    ours_difference: float
    sites: list[str]

    @property
    def speedup(self) -> float:
        return self.inductor_ms / self.ours_ms


class Failures(logging.Handler):
    """Collects what this package logs as an error: a kernel that failed and was replaced by plain torch."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def compiled(prepared: Prepared, backend: Any, options: dict[str, Any] | None = None) -> Callable[[], Any]:
    def block(*args: Any, **kwargs: Any) -> Any:
        return prepared.function(*args, **kwargs)

    function = torch.compile(block, backend=backend, options=options, dynamic=False)

    def call() -> Any:
        with torch.no_grad():
            return function(*prepared.args, **prepared.kwargs)

    return call


def milliseconds(call: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return times


def distance(result: list[Tensor], reference: list[Tensor]) -> float:
    squares = sum(
        (a.float() - b.float()).square().sum().item() for a, b in zip(result, reference, strict=True)
    )
    return float((squares / sum(b.float().square().sum().item() for b in reference)) ** 0.5)


def measure(name: str, options: dict[str, Any]) -> Row:
    prepared = workload(name).build()

    def eager() -> Any:
        with torch.no_grad():
            return prepared()

    torch._dynamo.reset()
    already = len(history())
    calls = {
        "eager": eager,
        "inductor": compiled(prepared, "inductor"),
        "ours": compiled(prepared, rocm_diffusion, options),
    }
    results = {form: [t.clone() for t in tensors_in(call())] for form, call in calls.items()}
    sites = [str(entry) for ledger in history()[already:] for entry in ledger.entries]
    differences = {form: distance(results[form], results["eager"]) for form in ("inductor", "ours")}
    del results
    times: dict[str, list[float]] = {form: [] for form in calls}
    began = time.perf_counter()
    while time.perf_counter() - began < 0.3:
        calls["inductor"]()
        torch.cuda.synchronize()
    for _ in range(ROUNDS):
        for form, call in calls.items():
            milliseconds(call, 2)
            times[form] += milliseconds(call, REPEATS // ROUNDS if form != "eager" else 2)
    medians = {form: statistics.median(t) for form, t in times.items()}
    return Row(
        name, medians["eager"], medians["inductor"], medians["ours"],
        differences["inductor"], differences["ours"], sites,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(BLOCKS[:5]), help="block names, separated by commas")
    parser.add_argument("--idioms", default="", help="as the backend's option; all by default")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further block after so many")
    args = parser.parse_args()
    options = {"idioms": args.idioms} if args.idioms else {}
    failures = Failures()
    logging.getLogger("rocm_passes").addHandler(failures)
    began = time.perf_counter()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(
        f"{'block':22s} {'eager':>8s} {'inductor':>9s} {'ours':>8s} {'faster':>7s}   difference: inductor, ours"
    )
    rows = []
    for name in args.only.split(","):
        if time.perf_counter() - began > args.seconds:
            break
        row = measure(name, options)
        rows.append(row)
        print(
            f"{name:22s} {row.eager_ms:8.3f} {row.inductor_ms:9.3f} {row.ours_ms:8.3f} {row.speedup:6.3f}x   "
            f"{row.inductor_difference:.2e}, {row.ours_difference:.2e}   ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        for site in row.sites:
            print(f"    {site}"[:200])
        gc.collect()
        torch.cuda.empty_cache()
    if args.json:
        report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        args.json.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    if failures.said:
        raise SystemExit("\n".join(["a kernel of ours failed:", *failures.said]))


if __name__ == "__main__":
    main()
