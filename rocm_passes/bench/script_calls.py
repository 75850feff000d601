"""Watching the compiled callables of a script: `torch.compile` is replaced in a process that
benchmarks it.

Each callable that the script makes by `torch.compile`, `module.compile()` or `compile_pipeline` is
compiled as the form says, and its calls are timed. A call within another compiled call is part of
that one.

    eager       nothing is compiled; the callables are timed all the same
    inductor    backend="inductor", everything else as the script has it
    static      the same with dynamic=False
    ours        backend="rocm_diffusion", everything else as the script has it
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rocm_passes.bench.inputs import tensors_in

FORMS = ("eager", "inductor", "static", "ours")
#: Callables whose first output is kept, and how many of its elements.
MOST_SAMPLES, SAMPLE = 64, 100_000
Function = Callable[..., Any]
Span = Callable[[], float]


@dataclass
class Watched:
    """The calls of one callable: a function for each that gives its milliseconds, once the device
    is done.
    """

    name: str
    spans: list[Span] = field(default_factory=list)
    first_s: float = 0.0
    sample: Tensor | None = None

    def milliseconds(self) -> float | None:
        """The median call behind the first, which compiles; None where there was only one."""
        later = self.spans[1:]
        return statistics.median(span() for span in later) if later else None


class Watch:
    """All callables of one script in one form."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.callables: list[Watched] = []
        self._depth = 0

    def compile(self, original: Function) -> Function:
        """What stands in for `torch.compile`."""

        @functools.wraps(original)
        def compiling(model: Any = None, **keywords: Any) -> Any:
            if model is None:
                return functools.partial(compiling, **keywords)
            if self.form == "eager":
                return self._eager(model)
            return self._compiled(model, original(model, **arguments(self.form, keywords)))

        return compiling

    def _eager(self, model: Any) -> Any:
        """A module stays what it is, for scripts that look at it; its forward is watched."""
        if isinstance(model, nn.Module):
            model.forward = self._timed(model.forward, type(model).__name__)
            return model
        return self._timed(model, _name(model))

    def _compiled(self, model: Any, compiled: Any) -> Any:
        if isinstance(compiled, nn.Module):
            compiled.forward = self._timed(compiled.forward, type(model).__name__)
            return compiled
        return self._timed(compiled, _name(model))

    def _timed(self, function: Function, name: str) -> Function:
        watched = Watched(name)
        self.callables.append(watched)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._depth:
                return function(*args, **kwargs)
            self._depth += 1
            try:
                return self._call(watched, function, args, kwargs)
            finally:
                self._depth -= 1

        return call

    def _call(self, watched: Watched, function: Function, args: Any, kwargs: Any) -> Any:
        first = not watched.spans
        began = time.perf_counter()
        stop = start_span()
        result = function(*args, **kwargs)
        watched.spans.append(stop())
        if first:
            if self.callables.index(watched) < MOST_SAMPLES:
                watched.sample = sample(result)
            synchronize()
            watched.first_s = time.perf_counter() - began
        return result

    def figures(self) -> dict[str, Any]:
        """Of callables that were called: names with calls and medians, sums over them, and their
        first calls.
        """
        synchronize()
        called = [w for w in self.callables if w.spans]
        steady = [ms for w in called if (ms := w.milliseconds()) is not None]
        return {
            "callables": [
                {
                    "name": w.name,
                    "calls": len(w.spans),
                    "ms": w.milliseconds(),
                    "first_s": w.first_s,
                }
                for w in called
            ],
            "calls_ms": sum(steady) if steady else None,
            "first_s": sum(w.first_s for w in called),
        }

    def samples(self) -> list[Tensor]:
        return [w.sample for w in self.callables if w.sample is not None]


def arguments(form: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of torch.compile, for the form. Options that plain Inductor does not have are left
    out there.
    """
    changed = dict(given)
    backend = changed.pop("backend", "inductor")
    if form == "ours":
        from rocm_passes.backend import rocm_diffusion

        ours = backend == "rocm_diffusion" or getattr(backend, "func", backend) is rocm_diffusion
        return {**changed, "backend": backend if ours else rocm_diffusion}
    options = dict(changed.pop("options", None) or {})
    if options:
        changed |= inductors(options, changed.get("mode"))
    if form == "static":
        changed["dynamic"] = False
    return {**changed, "backend": "inductor"}


def inductors(options: Mapping[str, Any], mode: str | None) -> dict[str, Any]:
    """The keywords of torch.compile that plain Inductor takes. With options it refuses a mode, so
    "mode" among the backend's options becomes the options that it stands for.
    """
    from rocm_passes.options import parse

    _, patch = parse(options, mode)
    return {"options": patch, "mode": None} if patch else {}


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    return (
        type(owner).__name__ if owner is not None else str(getattr(function, "__name__", function))
    )


def start_span() -> Callable[[], Span]:
    """On a GPU events on the current stream, which disturb nothing; elsewhere the wall clock."""
    if not torch.cuda.is_available():
        began = time.perf_counter()

        def stop() -> Span:
            spent = 1e3 * (time.perf_counter() - began)
            return lambda: spent

        return stop
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()

    def record() -> Span:
        end.record()
        return lambda: float(start.elapsed_time(end))

    return record


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sample(result: Any) -> Tensor | None:
    """Some elements of the first floating tensor of a result, as float32 on the CPU."""
    found = next((t for t in tensors_in(result) if t.is_floating_point()), None)
    if found is None:
        return None
    flat = found.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)].float().cpu()
