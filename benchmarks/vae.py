"""VAE decodes: eager, Inductor, and this backend; time, peak memory, agreement, kernels.

    python -m benchmarks.vae --out results.json [--only vae_wan,vae_flux] [--variants eager,static,ours]

Each (decoder, variant) compiles in a process of its own, all at once; the timings then run one after
another on an otherwise idle GPU.
Weights are random, in bfloat16; times are medians over whole decodes, caches warm.
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
from pathlib import Path
from typing import Any

import torch

DECODERS = ("vae_wan", "vae_qwen_image", "vae_flux", "vae_hunyuan_video", "vae_cogvideox", "vae_ltx")
#: eager: no compile. called: Inductor as users call it. static: Inductor without dynamic shapes.
#: ours: this backend by the same call. pipeline: as `rocm_passes.pipelines.compile_pipeline` does it.
VARIANTS = ("eager", "static", "ours", "pipeline")
REPEATS = 10


def decoder(name: str, variant: str, dtype: torch.dtype) -> tuple[Callable[[], Any], torch.nn.Module]:
    """The decode to run, its decoder compiled as the variant says."""
    from benchmarks.models import workload
    from rocm_passes.backend import rocm_diffusion

    work = workload(name).build(device="cuda", dtype=dtype)
    vae: Any = work.module
    torch._dynamo.config.recompile_limit = 64
    if variant == "called":
        torch._dynamo.config.recompile_limit = 8
        vae.decoder = torch.compile(vae.decoder)
    elif variant == "static":
        vae.decoder = torch.compile(vae.decoder, dynamic=False)
    elif variant.startswith("ours"):
        options = json.loads(os.environ.get("VAE_OPTIONS", "{}"))
        vae.decoder = torch.compile(
            vae.decoder, backend=rocm_diffusion, dynamic=False, options=options or None
        )
    elif variant == "pipeline":
        from rocm_passes.pipelines import compile_vae

        compile_vae(vae)
    return work, vae


def measure(name: str, variant: str, dtype: torch.dtype, ready: Path, go: Path) -> dict[str, Any]:
    with torch.no_grad():
        work, _ = decoder(name, variant, dtype)
        started = time.perf_counter()
        result = sample(work())
        torch.cuda.synchronize()
        compile_seconds = time.perf_counter() - started
        work()
        torch.cuda.empty_cache()
        ready.touch()
        while not go.exists():
            time.sleep(0.05)
        for _ in range(2):
            work()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(REPEATS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        row = {
            "decoder": name,
            "variant": variant,
            "dtype": str(dtype).removeprefix("torch."),
            "ms": round(statistics.median(times), 2),
            "spread_ms": round(max(times) - min(times), 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "compile_s": round(compile_seconds, 1),
            "kernels": kernels(work),
        }
        if variant in ("ours", "pipeline"):
            row["sites"] = sites()
    torch.save(result.half().cpu()[..., ::4, ::4], ready.with_suffix(".pt"))
    return row


def sample(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.sample


def kernels(work: Callable[[], Any]) -> dict[str, list[Any]]:
    """GPU time by kernel of one decode, largest first: milliseconds and launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / 1000, e.count) for e in profile.key_averages()]
    rows.sort(key=lambda r: -r[1])
    named = {f"{i:02} {key[:110]}": [round(ms, 3), count] for i, (key, ms, count) in enumerate(rows[:60])}
    return {"total": [round(sum(r[1] for r in rows), 2), sum(r[2] for r in rows)], **named}


def sites() -> dict[str, int]:
    import collections

    import rocm_passes

    found = collections.Counter(
        f"{e.idiom} {e.outcome} {e.lowering or ''}".strip() for g in rocm_passes.history() for e in g.entries
    )
    return {**dict(found), "graphs": len(rocm_passes.history())}


def run(names: list[str], variants: list[str], dtype: str, out: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    jobs: list[tuple[str, str, Path, subprocess.Popen[bytes]]] = []
    for name in names:
        for variant in variants:
            base = folder / f"{name}.{variant}"
            command = [sys.executable, "-m", "benchmarks.vae", "--worker", name, variant, dtype, str(base)]
            env = {
                **os.environ,
                "TORCHINDUCTOR_COMPILE_THREADS": "4",
                "TORCHINDUCTOR_CACHE_DIR": str(folder / f"cache.{name}.{variant}"),
                "XDG_CACHE_HOME": str(folder / f"cache.{name}.{variant}"),
            }
            log = open(base.with_suffix(base.suffix + ".log"), "wb")  # noqa: SIM115
            jobs.append((name, variant, base, subprocess.Popen(command, env=env, stdout=log, stderr=log)))
    rows = []
    for *_, base, process in jobs:
        while process.poll() is None and not Path(f"{base}.ready").exists():
            time.sleep(0.05)
    for name, variant, base, process in jobs:
        Path(f"{base}.go").touch()
        process.wait()
        if process.returncode:
            print(f"{name} {variant} failed:\n" + Path(f"{base}.log").read_text()[-3000:])
            continue
        rows.append(json.loads(Path(f"{base}.json").read_text()))
        out.write_text(json.dumps(rows, indent=1))
    compare(rows, folder)
    out.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def compare(rows: list[dict[str, Any]], folder: Path) -> None:
    """Relative difference to eager's result, where eager ran."""
    for row in rows:
        eager, own = folder / f"{row['decoder']}.eager.pt", folder / f"{row['decoder']}.{row['variant']}.pt"
        if eager.exists() and own.exists():
            a, b = torch.load(eager).double(), torch.load(own).double()
            row["difference_to_eager"] = float(f"{((a - b).norm() / a.norm()).item():.2e}")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'decoder':20} {'variant':10} {'ms':>8} {'spread':>7} {'GiB':>6} {'compile s':>9} {'vs eager':>9}"
    ]
    for r in rows:
        difference = r.get("difference_to_eager", "")
        lines.append(
            f"{r['decoder']:20} {r['variant']:10} {r['ms']:8.2f} {r['spread_ms']:7.2f} {r['peak_gib']:6.2f} "
            f"{r['compile_s']:9.1f} {difference:>9}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("vae.json"))
    parser.add_argument("--only", default=",".join(DECODERS))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--worker", nargs=4, metavar=("NAME", "VARIANT", "DTYPE", "BASE"))
    arguments = parser.parse_args()
    if arguments.worker:
        name, variant, dtype, base = arguments.worker
        row = measure(name, variant, getattr(torch, dtype), Path(base + ".ready"), Path(base + ".go"))
        Path(base + ".json").write_text(json.dumps(row))
    else:
        run(arguments.only.split(","), arguments.variants.split(","), arguments.dtype, arguments.out)


if __name__ == "__main__":
    main()
