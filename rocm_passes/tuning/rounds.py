"""Telling apart times that lie a few per cent from each other: candidates in turn, in short bursts,
medians.

A GPU under load lowers its clock, so whoever is measured after a pause would be the faster. Every
round runs each candidate once, in rotating order; what drifts, drifts for all. A burst waits behind
a copy until it is enqueued as a whole: how long the host takes is not part of it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rocm_passes.policy import bounds

Work = Callable[[], Any]
#: Runs the calls in order, so many times, and gives the seconds of one time.
Burst = Callable[[Sequence[Work], int], float]


def in_turn(
    candidates: Mapping[str, Sequence[Work]],
    burst: Burst,
    *,
    rounds: int = int(bounds.ROUNDS.value),
    hopeless: float = bounds.HOPELESS.value,
    seconds: float = bounds.ROUND_SECONDS.value,
    warm: float = bounds.WARM_SECONDS.value,
) -> dict[str, float]:
    """Median seconds of each candidate's calls together. Raises what a call raises.

    warm: seconds of the same bursts that go before.
    """
    repeats = {name: _repeats(burst, work) for name, work in candidates.items()}
    while warm > 0:
        warm -= max(
            1e-6,
            sum(burst(work, repeats[name]) * repeats[name] for name, work in candidates.items()),
        )
    found: dict[str, list[float]] = {name: [] for name in candidates}
    turn = list(candidates)
    spent = 0.0
    for done in range(1, rounds + 1):
        for name in turn:
            took = burst(candidates[name], repeats[name])
            found[name].append(took)
            spent += took * repeats[name]
        turn = turn[1:] + turn[:1]
        if done >= bounds.FEWEST_ROUNDS.value:
            fastest = min(statistics.median(times) for times in found.values())
            turn = [name for name in turn if statistics.median(found[name]) <= hopeless * fastest]
            if spent > seconds:
                break
    return {name: statistics.median(times) for name, times in found.items()}


def _repeats(burst: Burst, work: Sequence[Work]) -> int:
    burst(work, 1)
    return max(1, math.ceil(bounds.BURST_SECONDS.value / max(burst(work, 1), 1e-7)))


def bursts_on(device: torch.device, host_seconds: float = bounds.HOST_SECONDS.value) -> Burst:
    """Bursts of the current stream of a GPU, or of the host's clock on a CPU. host_seconds: as of
    GpuBursts.
    """
    return GpuBursts(device, host_seconds) if device.type == "cuda" else _cpu_burst


def _cpu_burst(work: Sequence[Work], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        for call in work:
            call()
    return (time.perf_counter() - started) / repeats


class GpuBursts:
    """Timed by device events, behind copies that last until the burst is enqueued.

    host_seconds: what the host takes to enqueue a call, generously.
    """

    def __init__(
        self, device: torch.device, host_seconds: float = bounds.HOST_SECONDS.value
    ) -> None:
        self._host_seconds = host_seconds
        self._source = torch.empty(2**27, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self._copy_seconds = 1.0
        self._ahead(1)
        self._copy_seconds = self._timed(lambda: self._ahead(8)) / 8

    def __call__(self, work: Sequence[Work], repeats: int) -> float:
        self._ahead(math.ceil(self._host_seconds * len(work) * repeats / self._copy_seconds))

        def run() -> None:
            for _ in range(repeats):
                for call in work:
                    call()

        return self._timed(run) / repeats

    def _ahead(self, copies: int) -> None:
        for _ in range(copies):
            self._target.copy_(self._source)

    def _timed(self, run: Work) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
