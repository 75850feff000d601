"""Choosing by measurement: once for each call, machine and library version, within a budget,
remembered.

A call that was measured before, by anyone who wrote to the same file, is not measured again.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rocm_passes.kernels import register_lowerings
from rocm_passes.ops.operator import Lowering, computation_of
from rocm_passes.options import Options
from rocm_passes.policy.bounds import NOISE, SEARCH_SHARE
from rocm_passes.target import Target
from rocm_passes.tuning import ahead, checked
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning.store import Measured, Store, store

log = logging.getLogger(__name__)

Timer = Callable[[Sequence[Lowering[Any]], measuring.Convolution, measuring.Watch], Measured]


class Budget:
    """Seconds of measuring that this process may still spend; shared by every compile in it."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.measured = 0
        self._lock = threading.RLock()

    def __enter__(self) -> Budget:
        self._lock.acquire()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent += time.perf_counter() - self._started
        self._lock.release()

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.spent += seconds

    def left(self, limit: float) -> float:
        return limit - self.spent - (time.perf_counter() - self._started)


BUDGET = Budget()


def machine(target: Target) -> str:
    """What a measurement holds for: architecture, torch, and the convolution library."""
    library = torch.backends.cudnn.version() if target.is_gpu else None
    name = "miopen" if target.vendor == "amd" else "cudnn"
    version = target.torch_version.split("+")[0]
    return f"{target.label} / torch {version}" + (f" / {name} {library}" if library else "")


def pick(
    key: str,
    able: Sequence[Lowering[Any]],
    call: measuring.Convolution,
    target: Target,
    options: Options,
    timer: Timer | None = None,
    usual_mib: float = math.inf,
) -> tuple[Lowering[Any], str] | None:
    """The fastest of the lowerings within the memory bound, and the reason in words; None if
    unknown.

    Measures what the store lacks while the budget lasts. Within the noise the least memory wins.
    usual_mib: the bound where the user has given none; where nothing keeps to it, the least memory
    wins.
    """
    kept = store(options.choices)
    where = machine(target)
    found = kept.find(where, key)
    if found is None or any(
        low.name not in found.ms and low.name not in found.skipped for low in able
    ):
        if ahead.note(key, able, call):
            return None
        if options.tune_seconds > 0 and (target.is_gpu or timer is not None):
            # All of them, known ones too: times are compared within one measurement.
            found = (
                _measured(key, able, call, options, kept, where, timer or measuring.measure)
                or found
            )
    if found is None:
        return None
    checked.remember(key, found.skipped)
    return _best(able, found, call, options, usual_mib)


def _best(
    able: Sequence[Lowering[Any]],
    found: Measured,
    call: measuring.Convolution,
    options: Options,
    usual_mib: float,
) -> tuple[Lowering[Any], str] | None:
    measured = [low for low in able if low.name in found.ms]
    given = options.conv_memory_mib
    bound = usual_mib if given is None else given or math.inf
    known = [low for low in measured if found.mib[low.name] <= bound]
    if not known and given is None:
        known = sorted(measured, key=lambda low: found.mib[low.name])[:1]
    if not known:
        return None
    fastest = min(found.ms[low.name] for low in known)
    alike = [low for low in known if found.ms[low.name] <= fastest * (1 + NOISE.value)]
    best = min(alike, key=lambda low: found.mib[low.name])
    others = [f"{low.name} {found.ms[low.name]:.3g} ms" for low in known if low is not best]
    others += [f"{low.name} {found.ms[low.name]:.3g} ms, which needs {found.mib[low.name]} MiB"
               for low in measured if low not in known]  # fmt: skip
    others += [f"{low.name}, which is {found.skipped[low.name]}"
               for low in able if checked.known(call, low.name)]  # fmt: skip
    reason = f"measured on this machine: {found.ms[best.name]:.3g} ms" + (
        f" against {', '.join(others)}" if others else ""
    )
    return best, reason


def _measured(
    key: str,
    lowerings: Sequence[Lowering[Any]],
    call: measuring.Convolution,
    options: Options,
    kept: Store,
    where: str,
    timer: Timer,
) -> Measured | None:
    with BUDGET as budget:

        def watch(name: str, seconds: float) -> bool:
            if seconds > SEARCH_SHARE.value * options.tune_seconds:
                log.warning(
                    "rocm_passes: the first run of %s took %.0f s, mostly the library's search; it "
                    "won't be "
                    "repeated",
                    name,
                    seconds,
                )
            return budget.left(options.tune_seconds) > 0

        if budget.left(options.tune_seconds) <= 0:
            log.info(
                "rocm_passes: tuning budget of %g s is spent; rules decide", options.tune_seconds
            )
        else:
            found = timer(lowerings, call, watch)
            if found.ms or found.skipped:
                kept.add(where, key, found)
        _progress(budget, options)
    return kept.find(where, key)


def _progress(budget: Budget, options: Options) -> None:
    budget.measured += 1
    if sys.stderr.isatty():
        spent = budget.spent + (time.perf_counter() - budget._started)
        limit = options.tune_seconds
        line = f"\rrocm-passes: measured {budget.measured} convolutions, {spent:.0f} of {limit:g} s"
        print(line, end="", file=sys.stderr, flush=True)


def lowerings(noted: ahead.Call) -> list[Lowering[Any]]:
    """Those that can take the noted call."""
    register_lowerings()
    by_name = {low.name: low for low in computation_of(noted.call).lowerings}
    return [by_name[name] for name in noted.able]


def measure_noted(
    calls: Sequence[ahead.Call], options: Options, target: Target, timer: Timer | None = None
) -> int:
    """Measure calls that were noted ahead of time, one after another. Returns how many choices are
    known.
    """
    found = [pick(c.key, lowerings(c), c.call, target, options, timer) for c in calls]
    return sum(choice is not None for choice in found)
