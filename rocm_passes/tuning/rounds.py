"""Telling apart times that lie a few per cent from each other: candidates in turn, in short bursts, medians.

A GPU under load lowers its clock, so whoever is measured after a pause would be the faster. Every round runs
each candidate once, in rotating order; what drifts, drifts for all. A burst waits behind a copy until it is
enqueued as a whole: how long the host takes is not part of it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Work = Callable[[], Any]
#: Runs the calls in order, so many times, and gives the seconds of one time.
Burst = Callable[[Sequence[Work], int], float]

ROUNDS = 11
#: Rounds that a candidate gets before it may be dropped, and that all get however long they take.
FEWEST = 3
#: A candidate slower than the fastest by this factor is measured no further.
HOPELESS = 1.15
#: Repeat short calls until a burst is as long: far above an event's resolution of half a microsecond.
BURST_SECONDS = 0.7e-3
#: After this much time no further round is begun: long calls need fewer, as their noise is less.
SECONDS = 0.25
#: Before anything is counted: a GPU that comes from rest runs faster than the same GPU within a decode, and the
#: more so the harder a kernel works it (a conv3d of cuDNN's that took 0.74 ms at first took 0.79 on, H200).
WARM_SECONDS = 0.1
#: What the host takes to enqueue a convolution, or a Triton kernel of 60 arguments, at most.
HOST_SECONDS = 100e-6


def in_turn(
    candidates: Mapping[str, Sequence[Work]],
    burst: Burst,
    *,
    rounds: int = ROUNDS,
    hopeless: float = HOPELESS,
    seconds: float = SECONDS,
    warm: float = WARM_SECONDS,
) -> dict[str, float]:
    """Median seconds of each candidate's calls together. Raises what a call raises.

    warm: seconds of the same bursts that go before.
    """
    repeats = {name: _repeats(burst, work) for name, work in candidates.items()}
    while warm > 0:
        warm -= max(
            1e-6, sum(burst(work, repeats[name]) * repeats[name] for name, work in candidates.items())
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
        if done >= FEWEST:
            fastest = min(statistics.median(times) for times in found.values())
            turn = [name for name in turn if statistics.median(found[name]) <= hopeless * fastest]
            if spent > seconds:
                break
    return {name: statistics.median(times) for name, times in found.items()}


def _repeats(burst: Burst, work: Sequence[Work]) -> int:
    burst(work, 1)
    return max(1, math.ceil(BURST_SECONDS / max(burst(work, 1), 1e-7)))


def bursts_on(device: torch.device) -> Burst:
    """Bursts of the current stream of a GPU, or of the host's clock on a CPU."""
    return GpuBursts(device) if device.type == "cuda" else _cpu_burst


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

    def __init__(self, device: torch.device, host_seconds: float = HOST_SECONDS) -> None:
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
