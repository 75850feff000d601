"""VAE decodes: eager, Inductor, and this backend; time, peak memory, agreement, kernels.

    python -m rocm_passes.bench.vae [--only vae_wan,vae_flux@float32] [--dtype bfloat16]
        [--variants eager,static,pipeline] [--out results.json] [--seconds 500] [--choices FILE]

In three phases. First the choices: every decoder runs its passes alone, all at once; then one
process measures the convolutions that they met, on a GPU that does nothing else. Then each
(decoder, variant) compiles in a process of its own with these choices, as many at once as the GPU's
memory allows. Last, decoder by decoder, the variants take turns in short bursts, and each row is
printed as it is known.

Weights are random; times are medians over whole decodes, caches warm. `compile s` is the first
decode, while others compile as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.vae_worker import decode_worker, is_ours, measure_worker, note_worker
from rocm_passes.bench.workers import Admission, Worker, WorkerFailed

DECODERS = (
    "vae_wan",
    "vae_cogvideox",
    "vae_hunyuan_video",
    "vae_qwen_image",
    "vae_ltx",
    "vae_flux",
)
#: eager: no compile. called: Inductor as users call it. static: Inductor without dynamic shapes.
#: ours: this backend by the same call as static. pipeline: as `rocm_passes.compile_pipeline` does
#: it; behind a plus the conv_dtype of decoders in float32, as in pipeline+fp16.
VARIANTS = ("eager", "called", "static", "pipeline")
ROUNDS = 5
#: Peak GiB of a first decode in bfloat16, compile time included: estimates, rounded up generously.
PEAK_GIB = {"vae_cogvideox": 24.0, "vae_qwen_image": 10.0, "vae_wan_720p": 16.0, "vae_wan22": 24.0}
OTHER_GIB = 8.0
#: What a process keeps once its cache is emptied: weights and its context.
IDLE_GIB = 1.5


@dataclass
class Job:
    """One decoder in one variant, compiled in its own process. named: perhaps with a dtype of its
    own behind an @.
    """

    named: str
    variant: str
    usual_dtype: str
    worker: Worker | None = None
    failed: str = ""
    compile_s: float | None = None
    times: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.named.partition("@")[0]

    @property
    def dtype(self) -> str:
        return self.named.partition("@")[2] or self.usual_dtype

    @property
    def ready(self) -> bool:
        return self.compile_s is not None and not self.failed

    def row(self, finished: dict[str, Any]) -> dict[str, Any]:
        return {
            "decoder": self.name,
            "variant": self.variant,
            "dtype": self.dtype,
            "ms": round(statistics.median(self.times), 2),
            "spread_ms": round(max(self.times) - min(self.times), 2),
            "compile_s": self.compile_s,
            **finished,
        }


class Run:
    """The parent's side: the three phases over all the jobs."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.began = time.perf_counter()
        self.folder = Path(tempfile.mkdtemp(prefix="vae-benchmark-"))
        self.choices = Path(given.choices or self.folder / "choices.json").resolve()
        jobs = [
            Job(name, variant, given.dtype)
            for name in given.only.split(",")
            for variant in given.variants.split(",")
        ]
        self.jobs = [j for j in jobs if j.dtype == "float32" or "+" not in j.variant]
        self.rows: list[dict[str, Any]] = []

    def __call__(self) -> None:
        self.measure_choices()
        self.compile_all()
        print(HEADER, flush=True)
        for name in self.given.only.split(","):
            self.time_decoder([j for j in self.jobs if j.named == name])
        for job in self.jobs:
            if job.failed:
                print(f"{job.named} {job.variant} failed: {job.failed}")

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def measure_choices(self) -> None:
        ours = [j for j in self.jobs if is_ours(j.variant)]
        if not ours or self.given.tune_seconds == 0:
            return
        admission = Admission(self.given.at_once, self.given.gib)

        def note(job: Job) -> str | None:
            with admission.admitted(self.gib(job)):
                worker = self.start("--note", job.name, job.variant, dtype=job.dtype)
                try:
                    return str(worker.wait()["calls"])
                except WorkerFailed as error:
                    print(f"{job.named} {job.variant}: its calls are not known: {error}")
                    return None
                finally:
                    worker.close()

        with ThreadPoolExecutor(len(ours)) as pool:
            texts = [text for text in pool.map(note, ours) if text is not None]
        noted_at = self.elapsed()
        calls = self.folder / "calls.json"
        calls.write_text(json.dumps(texts))
        worker = self.start("--measure", "--calls", str(calls))
        try:
            found = worker.wait()
        except WorkerFailed as error:
            print(f"the choices were not measured: {error}")
            return
        finally:
            worker.close()
        took = self.elapsed() - noted_at
        print(
            f"{found['calls']} convolutions noted in {noted_at:.0f} s; {found['known']} measured "
            f"in {took:.0f} s"
        )

    def compile_all(self) -> None:
        admission = Admission(self.given.at_once, self.given.gib)
        pool = ThreadPoolExecutor(len(self.jobs))
        # The eager ones are there at once: last, so that compiles begin early.
        order = sorted(self.jobs, key=lambda j: j.variant == "eager")
        waiting = [pool.submit(self.compile_one, job, admission) for job in order]
        for future in waiting:
            reserve = 6 * sum(j.ready for j in self.jobs)
            left = self.given.seconds - reserve - self.elapsed()
            try:
                future.result(timeout=max(0.0, left))
            except TimeoutError:
                break
        for job in self.jobs:
            if not job.ready and not job.failed:
                job.failed = f"not compiled within the time ({self.elapsed():.0f} s)"
                if job.worker is not None:
                    job.worker.kill()
        pool.shutdown(cancel_futures=True)
        for job in self.jobs:
            if "OutOfMemoryError" in job.failed and self.elapsed() < 0.6 * self.given.seconds:
                job.failed = ""
                self.compile_one(job, Admission(1, self.given.gib))
        print(
            f"{sum(j.ready for j in self.jobs)} of {len(self.jobs)} ready after "
            f"{self.elapsed():.0f} s"
        )

    def compile_one(self, job: Job, admission: Admission) -> None:
        with admission.admitted(self.gib(job), kept=IDLE_GIB):
            if job.failed:
                return
            job.worker = self.start("--decode", job.name, job.variant, dtype=job.dtype)
            if job.failed:  # the time was up meanwhile
                job.worker.kill()
            try:
                job.compile_s = job.worker.wait()["compile_s"]
            except WorkerFailed as error:
                job.failed = job.failed or str(error)

    def time_decoder(self, jobs: list[Job]) -> None:
        ready = [j for j in jobs if j.ready]
        turn = list(ready)
        try:
            for _ in range(ROUNDS):
                for job in turn:
                    assert job.worker is not None
                    job.times += job.worker.ask("burst")["ms"]
                turn = turn[1:] + turn[:1]
        except WorkerFailed as error:
            for job in ready:
                job.failed = job.failed or f"timing stopped: {error}"
        for job in ready:
            self.finish(job)

    def finish(self, job: Job) -> None:
        assert job.worker is not None
        try:
            finished = job.worker.ask("finish", str(self.sample(job.variant, job.named)))
        except WorkerFailed as error:
            job.failed = str(error)
        else:
            row = job.row(finished)
            eager = self.sample("eager", job.named)
            if eager.exists():
                row["difference_to_eager"] = difference(self.sample(job.variant, job.named), eager)
            self.rows.append(row)
            print(line(row), flush=True)
            self.given.out.write_text(json.dumps(self.rows, indent=1))
        job.worker.close()

    def sample(self, variant: str, name: str) -> Path:
        return self.folder / f"{name}.{variant}.pt"

    def gib(self, job: Job) -> float:
        wide = 2 if job.dtype == "float32" else 1
        return wide * PEAK_GIB.get(job.name, OTHER_GIB)

    def start(self, role: str, *arguments: str, dtype: str = "") -> Worker:
        name = ".".join(a for a in (role.strip("-"), *arguments, dtype) if a and "/" not in a)
        env = {
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"cache.{name}"),
        }
        if role == "--decode":
            env |= {"ROCM_PASSES_CHOICES": str(self.choices), "ROCM_PASSES_TUNE_SECONDS": "0"}
        given = self.given
        settings = ["--dtype", dtype or given.dtype, "--device", given.device]
        settings += ["--weights", given.weights]
        settings += ["--options", json.dumps(given.options)]
        settings += ["--choices", str(self.choices), "--tune-seconds", str(given.tune_seconds)]
        settings += ["--tiny"] * given.tiny
        return Worker(
            "rocm_passes.bench.vae", [role, *arguments, *settings], env, self.folder / f"{name}.log"
        )


def difference(result: Path, reference: Path) -> float:
    """Of two saved samples, relative to the norm of the second."""
    a, b = torch.load(result).double(), torch.load(reference).double()
    return float(f"{((a - b).norm() / b.norm()).item():.2e}")


HEADER = (
    f"{'decoder':20} {'dtype':8} {'variant':13} {'ms':>8} {'spread':>7} "
    f"{'GiB':>6} {'compile s':>9} {'vs eager':>9}"
)


def line(r: dict[str, Any]) -> str:
    return (
        f"{r['decoder']:20} {r['dtype']:8} {r['variant']:13} {r['ms']:8.2f} {r['spread_ms']:7.2f} "
        f"{r['peak_gib']:6.2f} {r['compile_s']:9.1f} {r.get('difference_to_eager', ''):>9}"
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--only", default=",".join(DECODERS), help="decoders (rocm_passes/bench/vae_models.py)"
    )
    made.add_argument(
        "--variants", default=",".join(VARIANTS), help=f"of {', '.join((*VARIANTS, 'ours'))}"
    )
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--out", type=Path, default=Path("vae.json"))
    made.add_argument(
        "--weights",
        choices=("as_is", "channels_last"),
        default="as_is",
        help="memory format of the convolutions' weights, in all variants: results and kept frames "
        "lie as they do",
    )
    made.add_argument(
        "--choices", help="file of measured choices to use and add to (default: a new one)"
    )
    made.add_argument("--options", type=json.loads, default={}, help="the backend's, as JSON")
    made.add_argument("--tune-seconds", type=float, default=60.0, help="0: choose by rule")
    made.add_argument(
        "--seconds", type=float, default=500.0, help="compile no longer than fits into these"
    )
    made.add_argument("--at-once", type=int, default=max(2, (os.cpu_count() or 2) * 3 // 4))
    made.add_argument(
        "--gib", type=float, default=110.0, help="memory of the GPU to fill while compiling"
    )
    made.add_argument("--device", default="cuda", help="cpu, with --tiny, to try this program")
    made.add_argument("--tiny", action="store_true", help="the tests' models")
    for role in ("--note", "--decode"):
        made.add_argument(role, nargs=2, help=argparse.SUPPRESS)
    made.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--calls", help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> None:
    raise_on_compile_error()
    given = parser().parse_args(arguments)
    if given.note:
        note_worker(*given.note, given)
    elif given.decode:
        decode_worker(*given.decode, given)
    elif given.measure:
        measure_worker(given)
    else:
        Run(given)()


if __name__ == "__main__":
    main(sys.argv[1:])
