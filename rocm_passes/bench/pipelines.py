"""Whole diffusers pipelines: eager, plain Inductor in several forms, and this package, on one GPU.

    python -m rocm_passes.bench.pipelines [--only sdxl,wan] [--forms eager,blocks+vae,ours]
        [--seconds 500] [--json FILE] [--table FILE] [--caches FOLDER] [--plan]

Each form of a pipeline runs in a process of its own. First all of them compile, several at once,
from empty caches; each then starts a second time, from the caches that the first start filled, and
this second process is the one that is timed. For timing the forms of one pipeline take turns on a
GPU that does nothing else. Times are medians. `--seconds` is a limit: what no longer fits is left
out, and the table says so. With `--caches` the caches stay, and a later run compiles only what is
not in them.

Weights are random. `total` is denoise and decode. `device` is the sum of kernel times of a call,
from a profile of one forward and one decode; `launches` are the kernels of one forward. `host` is
processor time: of all threads while a call denoises, and of enqueuing one forward. Where the device
is far behind, the host waits for room in its queue, and that counts. `first call` has two steps and
a decode, cold and warm, while other forms compile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocm_passes.bench import pipeline_forms, pipeline_table, pipeline_worker
from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.pipeline_jobs import Job, decided
from rocm_passes.bench.pipeline_spec import Spec
from rocm_passes.bench.pipeline_specs import PIPELINES
from rocm_passes.bench.workers import Admission, Worker, WorkerFailed

#: Seconds: of one turn, of what a worker does last, of a start from warm caches, and the least
#: worth timing.
TURN, FINISH, WARM_START, LEAST = 1.5, 5.0, 45.0, 10.0
#: Seconds before the limit at which everything still running is ended; the share of it for cold
#: compiles.
SPARE, COMPILING = 5.0, 0.6
#: The share of a pipeline's time in which its workers must be ready to be timed.
STARTING = 0.75
#: GiB that a process holds besides its tensors, and that a GPU keeps for itself.
CONTEXT_GIB, KEPT_BACK_GIB = 0.8, 2.0


class Run:
    """The parent's side: compile, start again, take turns, report."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.began = time.perf_counter()
        self.folder = Path(given.caches or tempfile.mkdtemp(prefix="pipelines-")).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.specs = [PIPELINES[name](given.tiny) for name in given.only.split(",")]
        self.jobs = [Job(spec, form) for spec in self.specs for form in self._forms(spec)]
        self.gib = given.gib or _capacity(given.device)
        self.admission = Admission(given.at_once, self.gib)
        self.log = print

    def _forms(self, spec: Spec) -> tuple[str, ...]:
        return tuple(self.given.forms.split(",")) if self.given.forms else spec.forms

    def __call__(self) -> list[dict[str, Any]]:
        with self._limited():
            if len(self.specs) > 1:
                self._each(self.jobs, self._cold)
                self.say("compiled")
            for at, spec in enumerate(self.specs):
                self._pipeline([j for j in self.jobs if j.spec is spec], len(self.specs) - at)
        self.write()
        return self.rows()

    def _pipeline(self, jobs: list[Job], pipelines_left: int) -> None:
        share = self.left() / pipelines_left
        if not any(j.alive for j in jobs):
            return
        if len(self.specs) > 1 and share < WARM_START / 2 + LEAST and not self.given.tiny:
            decided(
                jobs, f"not started: {self.left():.0f} s were left for {pipelines_left} pipelines"
            )
            return
        until = self.elapsed() + share
        parked = self._too_large(jobs)
        late = [
            lambda job: job in jobs and not job.ready,
            f"not started in {STARTING * share:.0f} s",
        ]
        timer = threading.Timer(STARTING * share, self._kill, late)
        timer.daemon = True
        timer.start()
        self._each(jobs, self._start if len(self.specs) > 1 else self._cold_and_start, parked)
        timer.cancel()
        self.say(f"{jobs[0].spec.name}: started")
        ready = [j for j in jobs if j.ready]
        self._take_turns(ready, until, parked)
        for job in ready:
            self._guarded(job, lambda job=job: self._finish(job, parked))
            self.write()  # what ends this program from outside costs no form that is done
        self.admission.forget(sum(j.kept_gib for j in jobs))
        self.say(f"{jobs[0].spec.name}: timed")

    def _each(self, jobs: list[Job], work: Callable[..., None], *more: Any) -> None:
        """Several jobs at once, those that compile longest first."""
        order = sorted(jobs, key=lambda j: (j.form == "eager", "whole" not in j.form))
        with ThreadPoolExecutor(max(1, len(order))) as pool:
            for future in [pool.submit(self._guarded, job, work, job, *more) for job in order]:
                future.result()

    def _guarded(self, job: Job, work: Callable[..., None], *arguments: Any) -> None:
        """Run a job's work. What fails there costs that job only."""
        if not job.alive:
            return
        try:
            work(*arguments)
        except Exception as error:
            said = (
                str(error)
                if isinstance(error, WorkerFailed)
                else f"{type(error).__name__}: {error}"
            )
            decided([job], said)
            job.close()

    def _cold(self, job: Job) -> None:
        known = self.folder / f"{job.name}.cold.json"
        if known.exists():
            job.figures["first_cold"] = json.loads(known.read_text())["first_s"]
            return
        if job.form == "eager" or self.given.once:
            return
        with self.admission.admitted(job.gib):
            if not job.alive:
                return
            job.cold = True
            worker = self._worker(job, "cold")
            job.figures["first_cold"] = worker.wait()["first_s"]
            job.cold = False
            job.close()
        known.write_text(json.dumps({"first_s": job.figures["first_cold"]}))

    def _start(self, job: Job, parked: bool) -> None:
        kept = CONTEXT_GIB if parked else job.spec.weights_gib + 2 * CONTEXT_GIB
        with self.admission.admitted(job.gib, kept=kept):
            if not job.alive:
                return
            job.kept_gib = kept
            worker = self._worker(job, "kept")
            first = worker.wait()
            start = "cold" if self.given.once else "warm"
            job.figures |= {
                f"first_{start}": first["first_s"],
                f"compiled_{start}": first["compiled"],
            }
            job.figures |= worker.wait()
            if parked:
                worker.ask("let_go")
            job.ready = True

    def _cold_and_start(self, job: Job, parked: bool) -> None:
        self._cold(job)
        if job.alive:
            self._start(job, parked)

    def _too_large(self, jobs: list[Job]) -> bool:
        """Whether the weights of all forms at once leave no room to run one."""
        spec = jobs[0].spec
        return len(jobs) * (spec.weights_gib + 2 * CONTEXT_GIB) + spec.peak_gib > self.gib

    def _take_turns(self, jobs: list[Job], until: float, parked: bool) -> None:
        held = sum(j.figures["reserved_gib"] + CONTEXT_GIB for j in jobs)
        release = not parked and held > self.gib
        end = until - FINISH * len(jobs)
        turn = list(jobs)
        for done in range(self.given.rounds):
            began = self.elapsed()
            for job in turn:
                self._guarded(job, self._turn, job, release, parked)
            turn = turn[1:] + turn[:1]
            took = self.elapsed() - began
            if self.elapsed() + took > end:
                self.say(f"{done + 1} rounds of {took:.0f} s; more do not fit")
                break

    def _turn(self, job: Job, release: bool, parked: bool) -> None:
        assert job.worker is not None
        if parked:
            job.worker.ask("take_again")
        job.calls += job.worker.ask("run", str(TURN))["calls"]
        if parked or release:
            job.worker.ask("let_go" if parked else "release")

    def _finish(self, job: Job, parked: bool) -> None:
        assert job.worker is not None
        if parked:
            job.worker.ask("take_again")
        outputs = self.folder / f"{job.name}.outputs.pt"
        job.figures |= job.worker.ask("finish", str(outputs))
        job.outputs = outputs
        job.close()

    def _worker(self, job: Job, role: str) -> Worker:
        threads = max(1, (os.cpu_count() or 2) // max(1, min(self.given.at_once, len(self.jobs))))
        env = {
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"{job.name}.cache"),
            "ROCM_PASSES_CHOICES": str(
                self.given.choices or self.folder / f"{job.name}.choices.json"
            ),
        }
        words = ["--role", role, "--pipeline", job.spec.name, "--form", job.form]
        words += ["--device", self.given.device, "--backend", self.given.backend] + [
            "--tiny"
        ] * self.given.tiny
        job.worker = Worker(
            "rocm_passes.bench.pipelines", words, env, self.folder / f"{job.name}.{role}.log"
        )
        return job.worker

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Ends cold compiles at their share of the time, and whatever still runs shortly before the
        limit.
        """
        end, compiling = self.given.seconds - SPARE, COMPILING * self.given.seconds
        timers = [
            threading.Timer(
                compiling, self._kill, [lambda job: job.cold, f"not compiled in {compiling:.0f} s"]
            ),
            threading.Timer(
                end,
                self._kill,
                [lambda job: "forward_host" not in job.figures, f"not done in {end:.0f} s"],
            ),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            for job in self.jobs:
                job.close()

    def _kill(self, which: Callable[[Job], bool], reason: str) -> None:
        for job in filter(which, self.jobs):
            decided([job], reason)
            job.kill()

    def rows(self) -> list[dict[str, Any]]:
        return [job.row(self._reference(job)) for job in self.jobs]

    def _reference(self, job: Job) -> Path | None:
        same = (j for j in self.jobs if j.spec is job.spec and j.form == "eager")
        return next((j.outputs for j in same), None)

    def write(self) -> None:
        rows = self.rows()
        if self.given.json:
            document = {"machine": pipeline_table.machine(), "rows": rows}
            self.given.json.write_text(json.dumps(document, indent=1) + "\n")
        if self.given.table:
            self.given.table.write_text(pipeline_table.markdown(rows))

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def left(self) -> float:
        return float(self.given.seconds) - SPARE - self.elapsed()

    def say(self, what: str) -> None:
        self.log(f"[{self.elapsed():.0f} s] {what}", flush=True)


def _capacity(device: str) -> float:
    import torch

    if device != "cuda":
        return 16.0
    return float(torch.cuda.get_device_properties(0).total_memory / 2**30 - KEPT_BACK_GIB)


def plan(run: Run) -> str:
    """What would run, and for how long: estimates from one H100."""
    jobs = [j for j in run.jobs if j.form != "eager" and not run.given.once]
    threads = max(1, min(run.given.at_once, len(jobs)))
    by_memory = sum(j.cold_s * j.gib for j in jobs) / run.gib
    longest = max((j.cold_s for j in jobs), default=0.0)
    compiling = max(longest, sum(j.cold_s for j in jobs) / threads, by_memory)
    lines, total = [f"cold start of {len(jobs)} forms: {compiling:.0f} s"], compiling
    for spec in run.specs:
        jobs = [j for j in run.jobs if j.spec is spec]
        rounds = len(jobs) * run.given.rounds * max(TURN + spec.eager_s, 2 * spec.eager_s)
        seconds = WARM_START + rounds + FINISH * len(jobs)
        parked = ", weights redrawn at each turn" if run._too_large(jobs) else ""
        lines.append(f"{spec.note}: {', '.join(j.form for j in jobs)}: {seconds:.0f} s{parked}")
        total += seconds
    lines.append(f"together {total:.0f} s of --seconds {run.given.seconds:.0f}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", default="sdxl,wan,z_image,flux", help=f"of {', '.join(PIPELINES)}")
    made.add_argument("--forms", help=f"of {', '.join(pipeline_forms.FORMS)}; default: by pipeline")
    made.add_argument("--seconds", type=float, default=540.0, help="end by then, whatever is done")
    made.add_argument("--rounds", type=int, default=6, help="turns of each form, if they fit")
    made.add_argument("--json", type=Path, help="write all figures to this file")
    made.add_argument("--table", type=Path, help="write the tables as Markdown to this file")
    made.add_argument(
        "--caches", help="folder of compile caches to use and keep (default: a new one)"
    )
    made.add_argument("--choices", help="file of measured choices to use and add to")
    made.add_argument(
        "--once", action="store_true", help="time the process that compiled; no second start"
    )
    made.add_argument("--at-once", type=int, default=max(2, (os.cpu_count() or 2) * 3 // 4))
    made.add_argument("--gib", type=float, default=0.0, help="memory to fill (default: the GPU's)")
    made.add_argument("--plan", action="store_true", help="print what would run, and for how long")
    made.add_argument("--tiny", action="store_true", help="small configs, to try this program")
    made.add_argument("--device", default="cuda", help="cpu, with --tiny")
    made.add_argument(
        "--backend", default="inductor", help="of the plain forms, to try this program"
    )
    made.add_argument("--role", choices=("cold", "kept"), help=argparse.SUPPRESS)
    made.add_argument("--pipeline", help=argparse.SUPPRESS)
    made.add_argument("--form", help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> None:
    raise_on_compile_error()
    made = parser()
    given = made.parse_args(arguments)
    if given.role:
        pipeline_worker.main(given)
        return
    for name, known in (("only", PIPELINES), ("forms", pipeline_forms.FORMS)):
        for word in (getattr(given, name) or "").split(","):
            if word and word not in known:
                made.error(f"--{name}: no {word!r}; there are {', '.join(known)}")
    run = Run(given)
    print(plan(run), flush=True)
    if not given.plan:
        print(pipeline_table.text(run()))


if __name__ == "__main__":
    main(sys.argv[1:])
