"""One pipeline in one form, in a process of its own: compiles, says how long that took, then runs
when told to.

Replies in turn: {first_s, compiled} after the first call: its seconds, and the graphs that no cache
had; and, for a worker that is kept, {settled_s,
reserved_gib} after a whole call. Then it answers `run SECONDS`, `release`, `let_go`, `take_again`
and `finish FILE`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rocm_passes.bench.inputs import tensors_in
from rocm_passes.bench.pipeline_forms import compile_as, is_ours, may_use_graphs
from rocm_passes.bench.pipeline_models import arguments, build, caller, inputs_of_denoiser, watched
from rocm_passes.bench.pipeline_specs import PIPELINES
from rocm_passes.bench.workers import commands, reply

GIB = 2**30
#: Steps of the first call: the second of them meets what the first one left behind.
FIRST_STEPS = 2
#: Calls in one turn, and forwards of the denoiser timed one by one.
MOST_CALLS, FORWARDS = 4, 5
#: Elements of an output that are kept for comparing it.
SAMPLE = 2_000_000


class Clock:
    """Wall and processor seconds at points of a call. The host sleeps while it waits for the
    device: where it spun, waiting would count as its work.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self.points: list[tuple[float, float]] = []

    def wait(self) -> None:
        if self._gpu:
            event = torch.cuda.Event(blocking=True)
            event.record()
            event.synchronize()

    def mark(self) -> None:
        enqueued = time.process_time()
        self.wait()
        self.points.append((time.perf_counter(), enqueued))

    def spans(self) -> list[tuple[float, float]]:
        """Milliseconds of wall and of processor time between the points."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return [(1e3 * (b[0] - a[0]), 1e3 * (b[1] - a[1])) for a, b in pairs]


class Subject:
    """The pipeline under test."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device, self.form = torch.device(given.device), given.form
        self.spec = PIPELINES[given.pipeline](given.tiny)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.pipe, self.weights = build(self.spec, self.device, dtype)
        self.denoiser = getattr(self.pipe, self.spec.denoiser)
        self.call = caller(self.pipe, self.spec, arguments(self.spec, self.device, dtype))
        self.args, self.kwargs = inputs_of_denoiser(self.denoiser, self.call)
        if self.form.startswith("whole"):
            # Z-Image builds its rotary tables at the first call, which Dynamo cannot trace;
            # compile_pipeline builds them ahead.
            self.forward()
        self.report = compile_as(given.form, self.pipe, self.denoiser, given.backend)
        self.clock = Clock(self.device)
        self.latents: list[Any] = []
        self.cold = False

    def forward(self) -> Any:
        with torch.no_grad():
            return self.denoiser(*self.args, **self.kwargs)

    def decode(self, latent: Tensor) -> Any:
        args, kwargs = self.latents[0]
        with torch.no_grad():
            return type(self.pipe.vae).decode(self.pipe.vae, latent, *args[1:], **kwargs)

    def latent(self) -> Tensor:
        """Noise in the shape of what the VAE decodes: the same in every form."""
        seen = self.latents[0][0][0]
        noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1))
        return noise.to(seen.device, seen.dtype)

    def timed_call(self) -> tuple[dict[str, float], Tensor]:
        self.clock.points = []
        self.clock.mark()
        made = self.call()
        (denoise, denoise_host), (decode, decode_host) = self.clock.spans()[:2]
        return {
            "denoise": denoise, "decode": decode, "denoise_host": denoise_host,
            "decode_host": decode_host
        }, made  # fmt: skip

    def run(self, seconds: float) -> list[dict[str, float]]:
        """Calls for so many seconds, behind one forward that is not counted (a whole call, where
        memory was released): a device that comes from a pause is faster, an allocator that starts
        empty slower.
        """
        if self.cold:
            self.call()
            self.cold = False
        else:
            self.forward()
        began = time.perf_counter()
        found: list[float] = []
        while not found or (len(found) < MOST_CALLS and time.perf_counter() - began < seconds):
            found.append(self.timed_call()[0])
        return found

    def release(self) -> None:
        """Give cached memory back. The next run warms the allocator."""
        self.cold = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def let_go(self) -> None:
        self.weights.let_go()
        self.release()

    def memory(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {"peak_gib": 0.0, "reserved_gib": 0.0}
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.memory_reserved() / GIB,
        }

    def finish(self, file: str, image: Tensor) -> dict[str, Any]:
        """Device time and launches of one forward and one decode, host time of a forward, and a
        sample of outputs.
        """
        memory, latent = self.memory(), self.latent()
        outputs = {
            "forward": sample(self.forward()), "decode": sample(self.decode(latent)),
            "image": sample(image)
        }  # fmt: skip
        torch.save(outputs, file)
        found: dict[str, Any] = {
            **memory,
            "report": self.report,
            "forward_host": self.host_of_forward(),
        }
        if self.device.type == "cuda":
            for name, work in (("forward", self.forward), ("decode", lambda: self.decode(latent))):
                found |= kernels(name, work, self.clock.wait)
        if is_ours(self.form):
            found |= ledger()
        return found

    def host_of_forward(self) -> float:
        """Median milliseconds of processor time in which one forward is enqueued."""
        found = []
        for _ in range(FORWARDS):
            self.clock.wait()
            began = time.process_time()
            self.forward()
            found.append(1e3 * (time.process_time() - began))
        return statistics.median(found)


def sample(result: Any) -> Tensor:
    flat = tensors_in(result)[0].detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)].float().cpu()


def kernels(name: str, work: Callable[[], Any], wait: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds and launches on the device of one call, and its longest kernels; what failed,
    where it did.
    """
    try:
        work()
        wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            torch.cuda.synchronize()
        rows = [(e.key, e.self_device_time_total / 1e3, e.count) for e in profile.key_averages()]
    except Exception as error:  # a profiler that does not work costs a column, not the row
        return {f"{name}_profile": f"{type(error).__name__}: {error}"}
    rows = sorted((r for r in rows if r[1]), key=lambda r: -r[1])
    return {
        f"{name}_device": sum(r[1] for r in rows),
        f"{name}_launches": sum(r[2] for r in rows),
        f"{name}_kernels": {
            f"{i:02} {key[:100]}": [round(ms, 3), n] for i, (key, ms, n) in enumerate(rows[:25])
        },
    }


def ledger() -> dict[str, Any]:
    import rocm_passes

    graphs = rocm_passes.history()
    found = Counter(
        f"{e.idiom} {e.outcome} {e.lowering or ''}".strip() for g in graphs for e in g.entries
    )
    return {"sites": dict(found), "graphs": len(graphs)}


def main(given: argparse.Namespace) -> None:
    subject = Subject(given)
    with watched(subject.pipe.vae, subject.clock.mark, subject.latents):
        began = time.perf_counter()
        subject.call(FIRST_STEPS)
        subject.clock.wait()
        compiled = counters["inductor"]["fxgraph_cache_miss"]
        reply(first_s=time.perf_counter() - began, compiled=compiled)
        if given.role == "cold":
            return
        serve(subject)


def serve(subject: Subject) -> None:
    began = time.perf_counter()
    for _ in range(2 if may_use_graphs(subject.form) else 1):
        image = subject.timed_call()[1]
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    image = sample(image)
    settled = time.perf_counter() - began
    # What a run needs, without what compiling needed.
    subject.release()
    call, _ = subject.timed_call()
    reserved = subject.memory()["reserved_gib"]
    subject.release()  # while others start; the first run fills the allocator again
    reply(settled_s=settled, reserved_gib=reserved, call_s=(call["denoise"] + call["decode"]) / 1e3)
    for command, *words in commands():
        if command == "run":
            reply(calls=subject.run(float(words[0])))
        elif command == "finish":
            reply(**subject.finish(words[0], image))
        else:
            {
                "release": subject.release,
                "let_go": subject.let_go,
                "take_again": subject.weights.take_again,
            }[command]()
            reply(done=command)
