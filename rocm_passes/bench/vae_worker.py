"""What a process of the VAE benchmark does: it notes, measures, or compiles and decodes."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.workers import commands, reply

OURS = ("ours", "pipeline")
#: A variant's burst in each round: so many seconds, or decodes, whichever is less.
BURST_SECONDS, BURST_DECODES = 0.8, 4


def given_vae(name: str, given: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    """The VAE and its decode, as the arguments say."""
    vae, decode = vae_of(name, getattr(torch, given.dtype), given.device, given.tiny)
    if given.weights == "channels_last":
        lay_out_weights(vae)
    return vae, decode


def lay_out_weights(module: torch.nn.Module) -> None:
    """Convolutions' weights channels-last in memory. On a GPU results lie as the weights do, in
    eager too.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in module.parameters():
        if weight.dim() in formats and min(weight.shape[:2]) > 1:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def vae_of(name: str, dtype: torch.dtype, device: str, tiny: bool) -> tuple[Any, Callable[[], Any]]:
    """The VAE and its decode, of production size or, to try this program, of the tests' size."""
    if not tiny:
        from rocm_passes.bench.models import workload

        work = workload(name).build(device=device, dtype=dtype)
        return work.module, work
    try:
        from tests.zoo.vaes import VAES
    except ImportError as error:
        raise SystemExit("--tiny takes its models from the tests: run it in a checkout") from error

    case = next(case for case in VAES if case.name == name)
    model = case.build(dtype).to(device)
    args, kwargs = case.inputs(model)
    return model, lambda: getattr(model, case.entry)(*args, **kwargs)


def compile_as(variant: str, vae: Any, options: dict[str, Any]) -> None:
    """Compile the VAE's decoder as the variant says."""
    from rocm_passes.backend import rocm_diffusion
    from rocm_passes.diffusers_pipeline import compile_vae

    variant, _, conv_dtype = variant.partition("+")
    options = {**options, "conv_dtype": conv_dtype} if conv_dtype else options
    torch._dynamo.config.recompile_limit = 8 if variant == "called" else 64
    if variant == "called":
        vae.decoder = torch.compile(vae.decoder)
    elif variant == "static":
        vae.decoder = torch.compile(vae.decoder, dynamic=False)
    elif variant == "ours":
        vae.decoder = torch.compile(
            vae.decoder, backend=rocm_diffusion, dynamic=False, options=options or None
        )
    elif variant == "pipeline":
        compile_vae(vae, options=options or None)


def is_ours(variant: str) -> bool:
    return variant.partition("+")[0] in OURS


def note_worker(name: str, variant: str, given: argparse.Namespace) -> None:
    """Phase 1: run the passes alone, and reply with the calls that they met."""
    from rocm_passes.tuning import ahead

    vae, decode = given_vae(name, given)
    compile_as(variant, vae, given.options)
    with torch.no_grad(), ahead.noting() as noted:
        decode()
    reply(calls=noted.dumps())


def measure_worker(given: argparse.Namespace) -> None:
    """Phase 1: measure the calls in a file, one after another, into the file of choices."""
    from rocm_passes.options import Options
    from rocm_passes.target import Target
    from rocm_passes.tuning import ahead, tuning

    calls = ahead.Noted.loads(*json.loads(Path(given.calls).read_text())).calls
    options = Options(choices=str(given.choices), tune_seconds=given.tune_seconds)
    known = tuning.measure_noted(calls, options, Target.current())
    reply(calls=len(calls), known=known)


def decode_worker(name: str, variant: str, given: argparse.Namespace) -> None:
    """Phases 2 and 3: compile and say so; then decode whenever told to."""
    vae, decode = given_vae(name, given)
    compile_as(variant, vae, given.options)
    device = Device(given.device)
    with torch.no_grad():
        started = time.perf_counter()
        result = sample(decode())
        device.synchronize()
        compile_seconds = time.perf_counter() - started
        decode()
        device.let_go()
        reply(compile_s=round(compile_seconds, 1))
        for command, *words in commands():
            if command == "burst":
                reply(ms=burst(decode, device))
            elif command == "finish":
                torch.save(result.half().cpu()[..., ::4, ::4], words[0])
                reply(
                    peak_gib=round(device.peak() / 2**30, 2),
                    kernels=kernels(decode) if given.device == "cuda" else {},
                    sites=sites() if is_ours(variant) else {},
                )


class Device:
    """A GPU, or a CPU standing in for one where this program is tried out."""

    def __init__(self, name: str) -> None:
        self._gpu = name == "cuda"

    def synchronize(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    def let_go(self) -> None:
        """Give back what the first decodes needed, and count the peak from here."""
        if self._gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._gpu else 0

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """From the first kernel's start to the last one's end; the host's time counts where it is
        the longer.
        """
        if not self._gpu:
            started = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - started)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def burst(decode: Callable[[], Any], device: Device) -> list[float]:
    """Milliseconds of some decodes in a row, behind one that is not counted."""
    first = device.milliseconds(decode)
    count = max(1, min(BURST_DECODES, int(1000 * BURST_SECONDS / first)))
    return [device.milliseconds(decode) for _ in range(count)]


def sample(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.sample


def kernels(work: Callable[[], Any]) -> dict[str, list[Any]]:
    """GPU time by kernel of one decode, largest first: milliseconds and launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / 1000, e.count) for e in profile.key_averages()]
    rows.sort(key=lambda r: -r[1])
    named = {
        f"{i:02} {key[:110]}": [round(ms, 3), count] for i, (key, ms, count) in enumerate(rows[:60])
    }
    return {"total": [round(sum(r[1] for r in rows), 2), sum(r[2] for r in rows)], **named}


def sites() -> dict[str, int]:
    import rocm_passes

    found = Counter(
        f"{e.idiom} {e.outcome} {e.lowering or ''}".strip()
        for g in rocm_passes.history()
        for e in g.entries
    )
    return {**dict(found), "graphs": len(rocm_passes.history())}
