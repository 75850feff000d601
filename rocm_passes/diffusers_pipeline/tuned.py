"""Choosing how a denoiser is compiled by measurement: whole, by blocks, with CUDA graphs.

Each way is compiled and the pipeline runs twice: the first call of the denoiser has the compile
time, the calls of the second run have the time of a forward. The fastest forward is taken; within
the noise, the way whose first call took less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rocm_passes.diffusers_pipeline import compiled_before, hooks
from rocm_passes.diffusers_pipeline.denoiser import compile_denoiser, plan
from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.diffusers_pipeline.settings import GRAPHS_MODE, Settings
from rocm_passes.policy.bounds import HOST_BOUND, NOISE


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@dataclass(frozen=True)
class Clock:
    """now: seconds. wait: until the device is done. graphs: can launches be replayed here?"""

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[], None] = _wait
    graphs: Callable[[], bool] = torch.cuda.is_available


@dataclass(frozen=True)
class Way:
    """how, mode: as the arguments of compile_pipeline that ask for it."""

    how: str
    mode: str | None = None

    def settings(self, given: Settings) -> Settings:
        options = dict(given.options)
        if self.mode:
            options["mode"] = self.mode
        return replace(given, how=self.how, options=options, graphs=given.graphs or bool(self.mode))

    def __str__(self) -> str:
        return f"how={self.how!r}" + (f", mode={self.mode!r}" if self.mode else "")


@dataclass(frozen=True)
class Call:
    """Seconds of a call: until it returned, and until the device was done."""

    returned: float
    done: float


@dataclass(frozen=True)
class Trial:
    """first: seconds of the first call, compiling. forward: median of later calls."""

    way: Way
    first: float
    forward: Call
    modules: list[nn.Module]

    @property
    def host_bound(self) -> bool:
        """Did the host need nearly all of a forward's time to enqueue it?"""
        return self.forward.returned >= HOST_BOUND.value * self.forward.done

    def __str__(self) -> str:
        times = f"{1000 * self.forward.done:.3g} ms a forward, first call {self.first:.1f} s"
        return f"{self.way}: {times}" + (", bound by the host" if self.host_bound else "")


def compile_tuned(
    component: nn.Module,
    *,
    name: str,
    report: Report,
    settings: Settings,
    run: Callable[[], object],
    clock: Clock | None = None,
) -> None:
    """Compile the denoiser in the way that is measured to be the fastest. run: calls the pipeline
    once.
    """
    clock = clock or Clock()
    reason = compiled_before.compiled_before(component) or compiled_before.untraceable(component)
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    eager = _eager(component, settings, run, clock)
    trials: list[Trial] = []
    for way in ways(component, settings):
        _try(way, component, settings, run, clock, trials, report, name)
    best = fastest(trials)
    if best is not None and best.host_bound and _replayable(component, best, settings, clock):
        graphs = Way(best.way.how, GRAPHS_MODE)
        _try(graphs, component, settings, run, clock, trials, report, name)
        best = fastest(trials)
    chosen = best.way if best is not None else Way("auto")
    before = len(report.parts)
    compile_denoiser(component, name=name, report=report, settings=chosen.settings(settings))
    if best is None:
        report.add(name, "tuned", "no way could be measured; chosen by rule")
        return
    _say_time(report, before, name, eager)
    others = "; ".join(str(t) for t in trials if t is not best)
    report.add(name, "tuned", f"{best}" + (f" (against {others})" if others else ""))


def ways(component: nn.Module, settings: Settings) -> list[Way]:
    """Those that compile different modules, the rule's first; the user's where one was given."""
    wanted = ["auto", "whole", "blocks"] if settings.how == "auto" else [settings.how]
    found: dict[tuple[int, ...] | None, Way] = {}
    in_pieces = hooks.any_below(component) or compiled_before.compiled_inside(component) > 0
    for how in wanted:
        modules = plan(component, replace(settings, how=how)).modules
        if modules is None and in_pieces:
            continue
        if modules is None:
            found.setdefault(None, Way("whole"))
        else:
            found.setdefault(tuple(map(id, modules)), Way(how))
    return list(found.values())


def fastest(trials: Iterable[Trial]) -> Trial | None:
    found = list(trials)
    if not found:
        return None
    limit = min(t.forward.done for t in found) * (1 + NOISE.value)
    return min((t for t in found if t.forward.done <= limit), key=lambda t: t.first)


def _replayable(component: nn.Module, best: Trial, settings: Settings, clock: Clock) -> bool:
    """May the launches be replayed? Not with sizes that change, nor with weights that move."""
    moves = hooks.moves_weights(component)
    modes = "mode" in settings.options or settings.graphs or settings.dynamic is True
    return clock.graphs() and not moves and not modes and best.modules == [component]


def _try(
    way: Way,
    component: nn.Module,
    settings: Settings,
    run: Callable[[], object],
    clock: Clock,
    trials: list[Trial],
    report: Report,
    name: str,
) -> None:
    """Measure one way, and leave the component as it was. What fails is one way less."""
    scratch = Report()
    compile_denoiser(component, name=name, report=scratch, settings=way.settings(settings))
    modules = scratch.modules.get(name, [])
    try:
        if not modules:
            return
        with _timed(component, clock) as calls:
            run()
            first = calls[0].done if calls else 0.0
            calls.clear()
            run()
        if calls:
            trials.append(Trial(way, first, _median(calls), modules))
    except Exception as error:
        said = str(error).partition("\n")[0]
        report.add(name, "tuned", f"{way} failed: {type(error).__name__}: {said}")
    finally:
        for module in modules:
            module._compiled_call_impl = None


def _eager(
    component: nn.Module, settings: Settings, run: Callable[[], object], clock: Clock
) -> Mapping[nn.Module, float]:
    """Seconds of each module that some way compiles, and of the component, in an eager run."""
    units = plan(component, replace(settings, how="blocks")).modules or []
    units += plan(component, replace(settings, how="auto")).modules or []
    watched = [m for m in dict.fromkeys([component, *units]) if m._compiled_call_impl is None]
    seconds: dict[nn.Module, float] = {}
    stopwatches = [(module, _timed(module, clock)) for module in watched]
    calls = [(module, stopwatch.__enter__()) for module, stopwatch in stopwatches]
    try:
        run()
        run()
    except Exception:
        # The trials say what fails; without an eager run there is no share of time.
        return {}
    finally:
        for _, stopwatch in stopwatches:
            stopwatch.__exit__(None, None, None)
    for module, found in calls:
        # The first run warms up.
        seconds[module] = sum(call.done for call in found[len(found) // 2 :])
    return seconds


def _say_time(report: Report, before: int, name: str, eager: Mapping[nn.Module, float]) -> None:
    """The compiled part's share of the component's eager time, in the place of its weights'."""
    modules = report.modules.get(name, [])
    whole = max(eager.values(), default=0.0)
    if not whole or not all(m in eager for m in modules):
        return
    share = min(1.0, sum(eager[m] for m in modules) / whole)
    for at in range(before, len(report.parts)):
        if report.parts[at].action == "compiled":
            report.parts[at] = replace(report.parts[at], share=share, share_of="time in eager")


def _median(calls: Iterable[Call]) -> Call:
    found = list(calls)
    return Call(
        statistics.median(call.returned for call in found),
        statistics.median(call.done for call in found),
    )


@contextmanager
def _timed(module: nn.Module, clock: Clock) -> Iterator[list[Call]]:
    """Times of the module's calls while the context is open. (Hooks would be part of its graph.)"""
    calls: list[Call] = []
    before = module._compiled_call_impl
    call: Callable[..., Any] = before if before is not None else module._call_impl

    def timed(*args: Any, **kwargs: Any) -> Any:
        clock.wait()
        started = clock.now()
        result = call(*args, **kwargs)
        returned = clock.now()
        clock.wait()
        calls.append(Call(returned - started, clock.now() - started))
        return result

    module._compiled_call_impl = timed
    try:
        yield calls
    finally:
        module._compiled_call_impl = before
