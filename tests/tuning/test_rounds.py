"""Times a few per cent apart are told apart on a GPU whose clock drifts and whose times scatter."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rocm_passes.policy.bounds import FEWEST_ROUNDS, HOPELESS, ROUND_SECONDS, ROUNDS, WARM_SECONDS
from rocm_passes.tuning import rounds


class Gpu:
    """Simulated bursts: a clock that falls by a fifth over the first quarter of a second, 1 %
    scatter, outliers.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self._draw = random.Random(seed)

    def __call__(self, work: Sequence[Any], repeats: int) -> float:
        took = 0.0
        for call in list(work) * repeats:
            slowed = 1 + 0.2 * min(1.0, self.now / 0.25)
            outlier = 1.5 if self._draw.random() < 0.05 else 1.0
            seconds = call() * slowed * outlier * self._draw.gauss(1, 0.01)
            self.now += seconds
            took += seconds
        return took / repeats


def work(ms: float, calls: int = 1) -> list[Any]:
    return [lambda: ms / 1000 / calls] * calls


def test_three_per_cent_are_told_apart() -> None:
    right = 0
    for seed in range(100):
        # The slower one is measured first, while the clock is high.
        times = rounds.in_turn({"slow": work(3.09), "fast": work(3.0, calls=3)}, Gpu(seed))
        right += times["fast"] < times["slow"]
    assert right >= 97


def test_one_after_the_other_would_not_tell_them_apart() -> None:
    """The simulation has teeth: the same medians, without turns, mistake the drift for a
    difference.
    """
    wrong = 0
    for seed in range(100):
        gpu = Gpu(seed)
        slow = statistics.median(gpu(work(3.09), 1) for _ in range(int(ROUNDS.value)))
        wrong += statistics.median(gpu(work(3.0), 1) for _ in range(int(ROUNDS.value))) > slow
    assert wrong >= 25


def test_short_calls_are_repeated_within_a_burst() -> None:
    bursts: list[int] = []

    def burst(calls: Sequence[Any], repeats: int) -> float:
        bursts.append(repeats)
        return 1e-4

    assert rounds.in_turn({"one": work(0.1)}, burst, warm=0) == {"one": 1e-4}
    assert bursts[:2] == [1, 1]
    assert set(bursts[2:]) == {7}
    assert len(bursts) == 2 + ROUNDS.value


def test_the_hopeless_are_dropped_and_keep_their_time() -> None:
    asked = {"good": 0, "bad": 0}
    seconds = {"good": 1e-3, "bad": 1e-3 * HOPELESS.value * 1.01}

    def burst(calls: Sequence[Any], repeats: int) -> float:
        asked[calls[0]] += 1
        return seconds[calls[0]]

    assert rounds.in_turn({"good": ["good"], "bad": ["bad"]}, burst, warm=0) == seconds  # type: ignore[list-item]
    assert asked == {"good": 2 + ROUNDS.value, "bad": 2 + FEWEST_ROUNDS.value}


def test_long_calls_end_after_the_fewest_rounds() -> None:
    asked = 0

    def burst(calls: Sequence[Any], repeats: int) -> float:
        nonlocal asked
        asked += 1
        return ROUND_SECONDS.value

    rounds.in_turn({"one": work(250)}, burst, warm=0)
    assert asked == 2 + FEWEST_ROUNDS.value


def test_a_cpu_s_time_is_measured() -> None:
    burst = rounds.bursts_on(torch.device("cpu"))
    ran: list[int] = []
    assert burst([lambda: ran.append(1)], 3) > 0
    assert len(ran) == 3


@pytest.mark.parametrize(("warm", "fastest"), [(0.0, "hard"), (WARM_SECONDS.value, "light")])
def test_times_are_those_under_load(warm: float, fastest: str) -> None:
    """Once the GPU has been busy for a while, the call that works it harder is the slower one."""
    busy = 0.0

    def burst(calls: Sequence[Any], repeats: int) -> float:
        nonlocal busy
        (name,) = calls
        took = 0.75e-3 if name == "light" else 0.74e-3 if busy < 0.06 else 0.79e-3
        busy += took * repeats
        return took

    times = rounds.in_turn({"hard": ["hard"], "light": ["light"]}, burst, warm=warm)  # type: ignore[list-item]
    assert min(times, key=times.__getitem__) == fastest
    assert times["hard"] == (0.79e-3 if warm else 0.74e-3)
