"""Choosing by measurement: once for each call, machine and library version, within a budget,
remembered.

A call that was measured before, by anyone who wrote to the same file, is not measured again.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rocm_passes.kernels import register_lowerings
from rocm_passes.ops.operator import Lowering, computation_of
from rocm_passes.options import Options
from rocm_passes.policy.bounds import NOISE, SEARCH_SHARE
from rocm_passes.target import Target
from rocm_passes.tuning import agreed, ahead, budget, checked, consulted
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning.budget import Budget
from rocm_passes.tuning.consulted import CONVOLUTION, Asked
from rocm_passes.tuning.known import Known
from rocm_passes.tuning.known import machine as machine
from rocm_passes.tuning.store import Measured, Store, store

log = logging.getLogger(__name__)

Timer = Callable[[Sequence[Lowering[Any]], measuring.Convolution, measuring.Watch], Measured]


class Picked(NamedTuple):
    """The lowering, why, and what was measured of each that could be taken."""

    lowering: Lowering[Any]
    reason: str
    found: Measured


def pick(
    key: str,
    able: Sequence[Lowering[Any]],
    call: measuring.Convolution,
    target: Target,
    options: Options,
    timer: Timer | None = None,
    usual_mib: float = math.inf,
) -> Picked | None:
    """The fastest of the lowerings within the memory bound, and the reason in words; None if
    unknown.

    Measures what the store lacks while the budget lasts. Within the noise the least memory wins.
    usual_mib: the bound where the user has given none; where nothing keeps to it, the least memory
    wins.
    """
    kept = store(options.choices)
    where = machine(target)
    names = [low.name for low in able]
    measure = None
    if not ahead.is_noting() and (target.is_gpu or timer is not None):
        # All of them, known ones too: times are compared within one measurement.
        times = timer or measuring.measure
        measure = functools.partial(_measured, key, able, call, options, kept, where, times)
    found = agreed.asked(options, target, where, key, names, measure)
    if (found is None or not found.covers(names)) and ahead.note(key, able, call):
        return None
    best = None
    if found is not None:
        checked.remember(key, found.times.skipped)
        best = _best(able, found, call, options, usual_mib)
    consulted.note(
        Asked(
            kind=CONVOLUTION,
            machine=where,
            key=key,
            able=tuple(names),
            chosen=best.lowering.name if best is not None else "",
            unmeasured=found is None and options.tune_seconds > 0,
            mib_at_most=_bound(options, usual_mib),
            given=options.conv_memory_mib is not None,
        )
    )
    return best


def fastest(
    names: Sequence[str], found: Measured, mib_at_most: float | None, given: bool
) -> str | None:
    """The name of the fastest within the memory bound. Within the noise the least memory wins.

    given: the user has given the bound; else, where nothing keeps to it, the least memory is taken.
    """
    able = within(names, found, mib_at_most, given)
    if not able:
        return None
    limit = min(found.ms[name] for name in able) * (1 + NOISE.value)
    alike = [name for name in able if found.ms[name] <= limit]
    return min(alike, key=lambda name: found.mib[name])


def within(
    names: Sequence[str], found: Measured, mib_at_most: float | None, given: bool
) -> list[str]:
    """Those that were measured and may be taken."""
    measured = [name for name in names if name in found.ms]
    bound = math.inf if mib_at_most is None else mib_at_most
    able = [name for name in measured if found.mib[name] <= bound]
    if not able and not given:
        able = sorted(measured, key=lambda name: found.mib[name])[:1]
    return able


def _bound(options: Options, usual_mib: float) -> float | None:
    """MiB, or None for no bound."""
    given = options.conv_memory_mib
    bound = usual_mib if given is None else given or math.inf
    return None if math.isinf(bound) else bound


def _best(
    able: Sequence[Lowering[Any]],
    found: Known,
    call: measuring.Convolution,
    options: Options,
    usual_mib: float,
) -> Picked | None:
    times, bound = found.times, _bound(options, usual_mib)
    given = options.conv_memory_mib is not None
    names = [low.name for low in able]
    best = fastest(names, times, bound, given)
    if best is None:
        return None
    known_ = within(names, times, bound, given)
    measured = [name for name in names if name in times.ms]
    others = [f"{name} {times.ms[name]:.3g} ms" for name in known_ if name != best]
    others += [f"{name} {times.ms[name]:.3g} ms, which needs {times.mib[name]} MiB"
               for name in measured if name not in known_]  # fmt: skip
    others += [f"{name}, which is {times.skipped[name]}"
               for name in names if checked.known(call, name)]  # fmt: skip
    reason = f"measured {found.origin}: {times.ms[best]:.3g} ms" + (
        f" against {', '.join(others)}" if others else ""
    )
    return Picked(next(low for low in able if low.name == best), reason, times)


def _measured(
    key: str,
    lowerings: Sequence[Lowering[Any]],
    call: measuring.Convolution,
    options: Options,
    kept: Store,
    where: str,
    timer: Timer,
) -> Measured | None:
    with budget.BUDGET as shared:

        def watch(name: str, seconds: float) -> bool:
            if seconds > SEARCH_SHARE.value * options.tune_seconds:
                log.warning(
                    "rocm_passes: the first run of %s took %.0f s, mostly the library's search; it "
                    "won't be repeated",
                    name,
                    seconds,
                )
            return shared.left(options.tune_seconds) > 0

        if shared.left(options.tune_seconds) <= 0:
            log.info(
                "rocm_passes: the %g s of tune_seconds are spent: rules decide the rest, which "
                "`rocm-passes tune` measures",
                options.tune_seconds,
            )
        else:
            found = timer(lowerings, call, watch)
            if found.ms or found.skipped:
                kept.add(where, key, found, options.select == "measure")
        progress(shared, options)
    return kept.find(where, key)


def progress(shared: Budget, options: Options) -> None:
    """One line on a terminal: what was measured, and the time that is left."""
    shared.measured += 1
    if sys.stderr.isatty():
        left = max(0.0, shared.left(options.tune_seconds))
        line = (
            f"\rrocm-passes: measured {shared.measured} calls; "
            f"{left:.0f} of {options.tune_seconds:g} s left"
        )
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
