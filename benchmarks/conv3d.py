"""Every Conv3d shape of the video VAEs: each lowering compiled, its time and memory, the choice made.

    python -m benchmarks.conv3d --out results.json

Each shape compiles in a process of its own, all at once; timings run one after another on an idle GPU.
A call is what a causal video VAE's graph holds: cached frames, new ones, zeros, the convolution.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

REPEATS = 7
CALLS = 4


@dataclass(frozen=True)
class Shape:
    """cached, frames: what stands end to end in time; zeros: frames before them."""

    channels: int
    out: int
    cached: int
    frames: int
    height: int
    width: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    zeros: int = 0
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        k = "x".join(map(str, self.kernel))
        held = f"{self.zeros}z+" * bool(self.zeros) + f"{self.cached}+" * bool(self.cached) + str(self.frames)
        return f"{self.channels}-{self.out} {k} {held}f {self.height}x{self.width} {self.dtype}"


SHAPES = (
    Shape(384, 384, 0, 1, 60, 104, zeros=2),
    Shape(384, 384, 1, 1, 60, 104, zeros=1),
    Shape(384, 384, 2, 1, 60, 104),
    Shape(384, 768, 2, 1, 60, 104, kernel=(3, 1, 1)),
    Shape(192, 384, 2, 2, 120, 208, kernel=(1, 1, 1)),
    Shape(192, 384, 2, 2, 120, 208),
    Shape(384, 384, 2, 2, 120, 208),
    Shape(192, 192, 2, 4, 240, 416),
    Shape(96, 96, 2, 4, 480, 832),
    Shape(96, 3, 2, 4, 480, 832),
    Shape(96, 96, 2, 4, 720, 1280),
    Shape(128, 128, 2, 16, 256, 256),
    Shape(96, 96, 2, 4, 480, 832, dtype="float32"),
    Shape(384, 384, 2, 2, 120, 208, dtype="float32"),
)

#: Lowering and layout; None is plain Inductor, "auto" is what the backend takes by itself.
WAYS: tuple[tuple[str | None, str], ...] = (
    (None, ""),
    ("auto", "auto"),
    ("direct", "as_is"),
    ("direct", "channels_last"),
    ("taps", "as_is"),
    ("taps", "channels_last"),
    ("unfold", "as_is"),
    ("unfold", "channels_last"),
)


def build(
    shape: Shape, lowering: str | None, layout: str
) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """A causal convolution between pointwise neighbours, compiled, and its inputs."""
    from rocm_passes.backend import rocm_diffusion

    dtype = getattr(torch, shape.dtype)
    kt, kh, kw = shape.kernel
    weight = torch.randn(shape.out, shape.channels, kt, kh, kw, device="cuda").to(dtype)
    weight /= (shape.channels * kt * kh * kw) ** 0.5
    bias = torch.randn(shape.out, device="cuda").to(dtype)

    def frames(count: int) -> torch.Tensor:
        x = torch.randn(1, shape.channels, count, shape.height, shape.width, device="cuda").to(dtype)
        return x.to(memory_format=torch.channels_last_3d) if layout in ("channels_last", "auto") else x

    def convolve(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([cache, F.silu(x)], 2) if shape.cached else F.silu(x)
        x = F.pad(x, [kw // 2, kw // 2, kh // 2, kh // 2, shape.zeros, 0])
        return F.conv3d(x, weight, bias) + 1

    inputs = (frames(max(shape.cached, 1)), frames(shape.frames))
    if lowering is None:
        return torch.compile(convolve, dynamic=False), inputs
    options: dict[str, Any] = {"layout": layout}
    if lowering != "auto":
        options |= {"lowering": {"conv3d": lowering}, "tune_seconds": 0}
    return torch.compile(convolve, backend=rocm_diffusion, dynamic=False, options=options), inputs


def measure(shape: Shape, ready: Path, go: Path) -> list[dict[str, Any]]:
    import rocm_passes

    built = []
    with torch.no_grad():
        for lowering, layout in WAYS:
            torch._dynamo.reset()
            run, inputs = build(shape, lowering, layout)
            run(*inputs)
            entries = [e for g in rocm_passes.history()[-1:] for e in g.entries if e.idiom == "conv3d"]
            said = (
                f"{entries[0].lowering or entries[0].outcome}: {entries[0].reason}"
                if entries and lowering
                else ""
            )
            built.append((lowering, layout, run, inputs, said))
        ready.touch()
        while not go.exists():
            time.sleep(0.05)
        return [time_one(shape, *row) for row in built]


def time_one(
    shape: Shape, lowering: str | None, layout: str, run: Any, inputs: Any, said: str
) -> dict[str, Any]:
    for _ in range(3):
        run(*inputs)
    busy = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(REPEATS):
        # Several calls between two events, queued behind a copy: launching is not what is compared.
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        busy.copy_(busy.flip(0))
        start.record()
        for _ in range(CALLS):
            run(*inputs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    return {
        "shape": shape.name,
        "way": "Inductor" if lowering is None else f"{lowering} {layout}".strip(),
        "ms": round(statistics.median(times), 4),
        "peak_mib": max(0, (torch.cuda.max_memory_allocated() - before) // 2**20),
        "said": said,
    }


def run_all(out: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    jobs = []
    for i in range(len(SHAPES)):
        base = folder / f"shape{i}"
        env = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2", "XDG_CACHE_HOME": str(folder)}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"cache{i}")
        log = open(f"{base}.log", "wb")  # noqa: SIM115
        command = [sys.executable, "-m", "benchmarks.conv3d", "--worker", str(i), str(base)]
        jobs.append((base, subprocess.Popen(command, env=env, stdout=log, stderr=log)))
    for base, process in jobs:
        while process.poll() is None and not Path(f"{base}.ready").exists():
            time.sleep(0.05)
    rows: list[dict[str, Any]] = []
    for base, process in jobs:
        Path(f"{base}.go").touch()
        process.wait()
        if process.returncode:
            print(Path(f"{base}.log").read_text()[-2000:])
            continue
        rows += json.loads(Path(f"{base}.json").read_text())
    out.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    ways = list(dict.fromkeys(r["way"] for r in rows))
    lines = ["shape".ljust(40) + "".join(w.replace("channels_last", "cl").rjust(14) for w in ways)]
    for shape in dict.fromkeys(r["shape"] for r in rows):
        cells = {r["way"]: f"{r['ms']:.3f}/{r['peak_mib']}" for r in rows if r["shape"] == shape}
        lines.append(shape.ljust(40) + "".join(cells.get(w, "").rjust(14) for w in ways))
        lines += ["    " + r["said"] for r in rows if r["shape"] == shape and r["way"].startswith("auto")]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("conv3d.json"))
    parser.add_argument("--worker", nargs=2, metavar=("SHAPE", "BASE"))
    arguments = parser.parse_args()
    if arguments.worker:
        index, base = arguments.worker
        rows = measure(SHAPES[int(index)], Path(base + ".ready"), Path(base + ".go"))
        Path(base + ".json").write_text(json.dumps(rows))
    else:
        run_all(arguments.out)


if __name__ == "__main__":
    main()
