"""Choosing for a site between Inductor's own code and the lowerings, by measurement.

Every candidate is the site with the same neighbours, compiled by Inductor. They take turns over
buffers that rotate and are larger than the cache; medians count. A lowering is taken where it is
faster than Inductor's code by more than the noise.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rocm_passes.options import Options
from rocm_passes.policy.bounds import HOST_ROUNDS, INFINITY_CACHE_MIB, MOST_SETS, NOISE
from rocm_passes.target import Target
from rocm_passes.tuning import agreed, budget, consulted, rounds, tuning
from rocm_passes.tuning.consulted import INDUCTOR, SITE, Asked
from rocm_passes.tuning.inductor_code import Compiled
from rocm_passes.tuning.known import Known, site_machine
from rocm_passes.tuning.store import Measured, store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: on the device, and of the host that enqueues it."""

    ms: float
    host_ms: float


#: Times each candidate over sets of inputs.
Timer = Callable[[Mapping[str, Compiled], Sequence[Sequence[Any]], torch.device], dict[str, Times]]


class Measurable(Protocol):
    """What is measured: a site with its neighbours."""

    @property
    def key(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def compiled(self, names: Sequence[str]) -> tuple[dict[str, Compiled], dict[str, str]]:
        """The candidates of these names, INDUCTOR among them; why the others have no code."""
        ...

    def wrong(self, name: str, compiled: Compiled) -> str:
        """How the candidate's values are wrong, or ""."""
        ...

    def inputs(self, cache: int) -> list[list[Any]]:
        """Sets of drawn inputs, together larger than a cache of so many bytes."""
        ...


class Picked(NamedTuple):
    """name: a lowering's, or INDUCTOR. found: what was measured of each candidate."""

    name: str
    reason: str
    found: Measured


def pick(
    site: Measurable,
    names: Sequence[str],
    target: Target,
    options: Options,
    hidden: bool,
    timer: Timer | None = None,
    may_measure: bool = True,
) -> Picked | None:
    """The candidate that is measured to be the fastest; None where nothing is known.

    hidden: what the launches cost the host does not count: CUDA graphs replay them, or the device
    has longer to work.
    """
    where = site_machine(target)
    measure = functools.partial(_measured, site, names, options, where, timer or timed)
    found = agreed.asked(options, target, where, site.key, names, measure if may_measure else None)
    best = decide(found.times, names, hidden) if found is not None else None
    unmeasured = may_measure and found is None and options.tune_seconds > 0
    consulted.note(
        Asked(SITE, where, site.key, tuple(names), best or "", unmeasured, hidden=hidden)
    )
    if found is None or best is None:
        return None
    return Picked(best, _reason(best, names, found, hidden), found.times)


def decide(found: Measured, names: Sequence[str], hidden: bool) -> str | None:
    """The fastest lowering where it is faster than Inductor's code beyond the noise, or INDUCTOR.
    None where Inductor's code was not measured.
    """
    if INDUCTOR not in found.ms:
        return None
    known_ = [name for name in names if name in found.ms]
    best = min(known_, key=lambda name: (cost(found, name, hidden), name), default=INDUCTOR)
    limit = cost(found, INDUCTOR, hidden) * (1 - NOISE.value)
    return best if cost(found, best, hidden) < limit else INDUCTOR


def cost(found: Measured, name: str, hidden: bool) -> float:
    """Milliseconds that a candidate costs the model: the device's, and what the host takes longer
    than with Inductor's code. Less time of the host is no gain: the device may be the slower one.
    """
    longer = found.host_ms.get(name, 0.0) - found.host_ms.get(INDUCTOR, 0.0)
    return found.ms[name] + (0.0 if hidden else max(0.0, longer))


def verdict(found: Measured, name: str) -> dict[str, float] | None:
    """The figures of one lowering beside Inductor's, for the ledger."""
    if name not in found.ms or INDUCTOR not in found.ms:
        return None
    figures = {"ms": found.ms[name], "inductor_ms": found.ms[INDUCTOR]}
    if name in found.host_ms and INDUCTOR in found.host_ms:
        figures["host_ms"] = found.host_ms[name]
        figures["inductor_host_ms"] = found.host_ms[INDUCTOR]
    return figures


def _reason(best: str, names: Sequence[str], found: Known, hidden: bool) -> str:
    times = found.times
    others = [name for name in (INDUCTOR, *names) if name != best and name in times.ms]
    said = [f"{_label(name)} {_figure(times, name, hidden)}" for name in others]
    said += [f"{name}, left out ({times.skipped[name]})" for name in names if name in times.skipped]
    mine = "" if best != INDUCTOR else f"{_label(best)} "
    against = f" against {', '.join(said)}" if said else ""
    return f"measured {found.origin}: {mine}{_figure(times, best, hidden)}{against}"


def _label(name: str) -> str:
    return "Inductor's own code" if name == INDUCTOR else name


def _figure(times: Measured, name: str, hidden: bool) -> str:
    extra = cost(times, name, hidden) - times.ms[name]
    longer = f" and {extra:.3g} ms more of the host" if extra > 0 else ""
    return f"{times.ms[name]:.3g} ms{longer}"


def _measured(
    site: Measurable, names: Sequence[str], options: Options, where: str, timer: Timer
) -> Measured | None:
    """Compile, verify and time the candidates, and keep what was found, within the budget."""
    with budget.BUDGET as shared:
        if shared.left(options.tune_seconds) <= 0:
            return None
        found = _found(site, names, timer, lambda: shared.left(options.tune_seconds) > 0)
        if found is not None:
            store(options.choices).add(where, site.key, found, options.select == "measure")
        tuning.progress(shared, options)
    return found


def _found(
    site: Measurable, names: Sequence[str], timer: Timer, goes_on: Callable[[], bool]
) -> Measured | None:
    """None where the time was spent before anything was timed."""
    started = time.perf_counter()
    compiled, skipped = site.compiled((INDUCTOR, *names))
    log.debug("%s: compiled in %.1f s", site.key, time.perf_counter() - started)
    if INDUCTOR not in compiled:
        return Measured({}, {}, {**dict.fromkeys(names, "not compared"), **skipped})
    for name in [n for n in compiled if n != INDUCTOR]:
        if not goes_on():
            return None
        wrong = site.wrong(name, compiled[name])
        if wrong:
            skipped[name] = wrong
            del compiled[name]
    if not goes_on():
        return None
    times = timer(compiled, site.inputs(cache_bytes(site.device)), site.device)
    ms = {name: round(found.ms, 5) for name, found in times.items()}
    host = {name: round(found.host_ms, 5) for name, found in times.items()}
    return Measured(ms, dict.fromkeys(ms, 0), skipped, host)


def timed(
    candidates: Mapping[str, Compiled], sets: Sequence[Sequence[Any]], device: torch.device
) -> dict[str, Times]:
    """Medians of interleaved turns over the sets of inputs, behind work that keeps the device
    busy.
    """
    work = {name: [_call(run, each) for each in sets] for name, run in candidates.items()}
    host = {name: _host_seconds(calls, device) for name, calls in work.items()}
    slowest = max(host.values())
    seconds = rounds.in_turn(work, rounds.bursts_on(device, 2 * slowest))
    return {name: Times(1000 * seconds[name] / len(sets), 1000 * host[name]) for name in candidates}


def _call(run: Compiled, inputs: Sequence[Any]) -> Callable[[], Any]:
    return lambda: run(list(inputs))


def _host_seconds(work: Sequence[Callable[[], Any]], device: torch.device) -> float:
    """Seconds of the host for one call: the median of turns in which nothing waits for the
    device.
    """
    if device.type != "cuda":
        return 0.0
    found = []
    for call in work[:2]:
        call()
    for turn in range(int(HOST_ROUNDS.value)):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        work[turn % len(work)]()
        found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


def cache_bytes(device: torch.device) -> int:
    """Of the last cache between the device and its memory."""
    if device.type != "cuda":
        return 0
    if torch.version.hip:
        return int(INFINITY_CACHE_MIB.value) << 20
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def rotated(inputs: Sequence[Any], cache: int, most: int) -> list[list[Any]]:
    """Copies of the inputs, together twice as large as the cache, of no more than `most` bytes."""
    size = sum(t.untyped_storage().nbytes() for t in inputs if isinstance(t, Tensor))
    wanted = 1 if not cache or not size else -(-2 * cache // size) + 1
    count = max(1, min(wanted, int(MOST_SETS.value), most // max(1, size)))
    return [list(inputs)] + [[_copy(t) for t in inputs] for _ in range(count - 1)]


def _copy(found: Any) -> Any:
    if not isinstance(found, Tensor):
        return found
    made = torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device=found.device)
    # Dims of stride 0 are one element, which a copy writes once.
    base = [0 if stride == 0 else slice(None) for stride in found.stride()]
    made[tuple(base)].copy_(found[tuple(base)])
    return made
