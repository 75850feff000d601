"""Whole transformer blocks at production size: eager, plain Inductor and this backend in one run.

    python -m rocm_passes.bench.blocks [--only NAME,NAME] [--json FILE] [--table FILE]
        [--options JSON] [--also JSON ...] [--seconds N]

Each block is a real one with the inputs that its model gives it (bench/block_models.py). `ms` is
the device's own time, of replays of a CUDA graph of one call. `in a row` is that of calls one
behind the other, as in a denoising loop: the larger of the device's time and the host's. `host` is
what enqueuing one call takes. Medians, the forms in turn, after a warm-up; the JSON file has every
kernel's time besides.
`difference` is the distance of a compiled result from eager's,
relative to its norm: for equal numerics ours must not exceed Inductor's by more than a tenth. The
run fails where a kernel of ours fell back to plain torch.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rocm_passes import history
from rocm_passes.backend import rocm_diffusion
from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.inputs import tensors_in
from rocm_passes.bench.models import workload
from rocm_passes.bench.workload import Prepared

BLOCKS = (
    "qwen_image_block", "z_image_block", "wan_block", "flux_double", "hunyuan_video_double",
    "flux_single", "flux2_double", "flux2_single", "hunyuan_video_single", "ltx_block",
    "wan_block_720p",
)  # fmt: skip
ROUNDS = 12
WARM_MS = 500


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: on the device alone, in a row, and to enqueue it."""

    graph: float
    in_a_row: float
    host: float


@dataclass(frozen=True)
class Row:
    """Times by form, and the compiled forms' distances from eager."""

    name: str
    times: dict[str, Times]
    difference: dict[str, float]
    sites: list[str]
    kernels: dict[str, dict[str, list[float]]]

    @property
    def ours(self) -> list[str]:
        return [form for form in self.times if form not in ("eager", "inductor")]

    def gain(self, form: str) -> float:
        """Inductor's time of the device over that of the form."""
        return self.times["inductor"].graph / self.times[form].graph


class Failures(logging.Handler):
    """Collects what this package logs as an error: a kernel that failed and was replaced by plain
    torch.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def compiled(
    prepared: Prepared, backend: Any, options: dict[str, Any] | None = None
) -> Callable[[], Any]:
    def block(*args: Any, **kwargs: Any) -> Any:
        return prepared.function(*args, **kwargs)

    function = torch.compile(block, backend=backend, options=options, dynamic=False)

    def call() -> Any:
        with torch.no_grad():
            return function(*prepared.args, **prepared.kwargs)

    return call


def device_ms(call: Callable[[], Any], repeats: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop) / repeats)


def host_ms(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    spent = time.perf_counter() - began
    torch.cuda.synchronize()
    return 1e3 * spent


def captured(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, Times]:
    """The forms in turn, in short bursts and in rotating order.

    A block at full load heats the card until it lowers its clock: whoever comes after a pause is
    the faster.
    """
    graphs = {form: captured(call) for form, call in calls.items() if form != "eager"}
    once = device_ms(graphs["inductor"].replay, 2)
    burst = max(1, min(10, int(25 / once)))
    replays = {form: graph.replay for form, graph in graphs.items()}
    device_ms(graphs["inductor"].replay, max(2, int(WARM_MS / once)))
    graph = in_turn(replays, lambda call: device_ms(call, burst))
    row = in_turn(calls, lambda call: device_ms(call, burst))
    host = in_turn(calls, host_ms)
    return {form: Times(graph.get(form, math.nan), row[form], host[form]) for form in calls}


def in_turn(
    calls: dict[str, Callable[[], Any]], time_of: Callable[[Callable[[], Any]], float]
) -> dict[str, float]:
    found: dict[str, list[float]] = {form: [] for form in calls}
    forms = list(calls)
    for _ in range(ROUNDS):
        for form in forms:
            found[form].append(time_of(calls[form]))
        forms = forms[1:] + forms[:1]
    return {form: statistics.median(times) for form, times in found.items()}


def kernels_of(call: Callable[[], Any]) -> dict[str, list[float]]:
    """Device time by kernel of one call, largest first: microseconds and launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / 3, e.count / 3) for e in profile.key_averages()]
    rows.sort(key=lambda row: -row[1])
    return {key[:120]: [round(us, 1), count] for key, us, count in rows if us}


def distance(result: list[Tensor], reference: list[Tensor]) -> float:
    squares = sum(
        (a.float() - b.float()).square().sum().item()
        for a, b in zip(result, reference, strict=True)
    )
    return float((squares / sum(b.float().square().sum().item() for b in reference)) ** 0.5)


def measure(name: str, forms: dict[str, dict[str, Any]]) -> Row:
    prepared = workload(name).build()

    def eager() -> Any:
        with torch.no_grad():
            return prepared()

    torch._dynamo.reset()
    already = len(history())
    calls = {"eager": eager, "inductor": compiled(prepared, "inductor")}
    calls |= {form: compiled(prepared, rocm_diffusion, options) for form, options in forms.items()}
    results = {form: [t.clone() for t in tensors_in(call())] for form, call in calls.items()}
    sites = [str(entry) for ledger in history()[already:] for entry in ledger.entries]
    differences = {
        form: distance(results[form], results["eager"]) for form in results if form != "eager"
    }
    del results
    times = timed(calls)
    return Row(
        name,
        times,
        differences,
        sites,
        {f: kernels_of(c) for f, c in calls.items() if f != "eager"},
    )


def document(rows: Sequence[Row]) -> dict[str, Any]:
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return found | {"rows": [asdict(row) for row in rows]}


def table(rows: Sequence[Row], note: str) -> str:
    """As Markdown: the device's time of a call in each compiled form, and what ours gain."""
    ours = rows[0].ours
    heads = ["block", "Inductor ms", *(f"{form} ms" for form in ours), *(f"{f} gain" for f in ours)]
    heads += ["difference, Inductor", *(f"difference, {form}" for form in ours)]
    lines = [note, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        times = [f"{row.times[form].graph:.3f}" for form in ("inductor", *ours)]
        gains = [f"{row.gain(form):.3f}" for form in ours]
        away = [f"{row.difference[form]:.2e}" for form in ("inductor", *ours)]
        lines.append(f"| {' | '.join([row.name, *times, *gains, *away])} |")
    means = [f"{statistics.geometric_mean([row.gain(form) for row in rows]):.3f}" for form in ours]
    blank = [""] * (1 + len(ours))
    lines.append(f"| {' | '.join(['geometric mean', *blank, *means, *blank])} |")
    return "\n".join([*lines, ""])


def shown(row: Row) -> str:
    lines = []
    for form, t in row.times.items():
        away = f"{row.difference[form]:.2e}" if form in row.difference else ""
        lines.append(
            f"{row.name:22s} {form:9s} {t.graph:8.3f} {t.in_a_row:9.3f} {t.host:7.3f}  {away}"
        )
    gains = [f"{form} {row.gain(form):.3f}x" for form in row.ours]
    lines.append(f"    against Inductor: {', '.join(gains)}")
    return "\n".join([*lines, *(f"    {site}"[:200] for site in row.sites)])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--only", default=",".join(BLOCKS[:5]), help="block names, separated by commas"
    )
    made.add_argument("--options", type=json.loads, default={}, help="the backend's, as JSON")
    further = "a further form of ours, with these options; as often as wanted"
    made.add_argument("--also", type=json.loads, action="append", default=[], help=further)
    made.add_argument("--json", type=Path, help="write the rows to this file, after each block")
    made.add_argument("--table", type=Path, help="write them as Markdown to this file")
    made.add_argument(
        "--seconds", type=float, default=1e9, help="start no further block after so many"
    )
    return made


def main() -> None:
    raise_on_compile_error()
    args = parser().parse_args()
    forms = {"ours": args.options}
    forms |= {f"also {at}": options for at, options in enumerate(args.also, 1)}
    failures = Failures()
    logging.getLogger("rocm_passes").addHandler(failures)
    began = time.perf_counter()
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(machine)
    print(f"{'block':22s} {'form':9s} {'ms':>8s} {'in a row':>9s} {'host':>7s}  difference")
    rows: list[Row] = []
    for name in args.only.split(","):
        if time.perf_counter() - began > args.seconds:
            break
        rows.append(measure(name, forms))
        print(shown(rows[-1]), f"({time.perf_counter() - began:.0f} s)", flush=True)
        if args.json:
            args.json.write_text(json.dumps(document(rows), indent=2) + "\n")
        if args.table:
            given = "; ".join(f"{form}: `{json.dumps(options)}`" for form, options in forms.items())
            args.table.write_text(table(rows, f"{machine}. Options of {given}."))
        gc.collect()
        torch.cuda.empty_cache()
    if failures.said:
        raise SystemExit("\n".join(["a kernel of ours failed:", *failures.said]))


if __name__ == "__main__":
    main()
