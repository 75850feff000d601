"""Choosing for a site between Inductor's own code and the lowerings, by a fake clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning import agreed, budget, consulted, sites
from rocm_passes.tuning.consulted import INDUCTOR, Record
from rocm_passes.tuning.inductor_code import Compiled
from rocm_passes.tuning.known import site_machine
from rocm_passes.tuning.sites import Times
from rocm_passes.tuning.store import Measured, store

MI300 = Target("amd", "gfx942", "MI300X", "2.13.0+rocm7", "3.7.0")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    monkeypatch.setattr(agreed, "_ANEW", set())
    yield


class Planted:
    """A site whose candidates are planted: what is wrong with each, and what fails to compile."""

    key = "rms_norm bfloat16 some site"
    device = torch.device("cpu")

    def __init__(self, wrong: Mapping[str, str] | None = None, fails: Sequence[str] = ()) -> None:
        self._wrong = wrong or {}
        self._fails = fails
        self.compiles = 0

    def compiled(self, names: Sequence[str]) -> tuple[dict[str, Compiled], dict[str, str]]:
        self.compiles += 1
        able = {n: lambda inputs: inputs for n in names if n not in self._fails}
        return able, dict.fromkeys(self._fails, "it does not compile")

    def wrong(self, name: str, compiled: Compiled) -> str:
        return self._wrong.get(name, "")

    def inputs(self, cache: int) -> list[list[Any]]:
        return [[torch.ones(2)]]


class Clock:
    """Times by name, in milliseconds; of the host behind the device's."""

    def __init__(self, **ms: float | tuple[float, float]) -> None:
        self.ms = ms
        self.timed: list[str] = []

    def __call__(self, candidates: Mapping[str, Compiled], *_: Any) -> dict[str, Times]:
        self.timed += candidates
        given = {n: m if isinstance(m, tuple) else (m, 0.0) for n, m in self.ms.items()}
        return {n: Times(*given[n]) for n in candidates}


def pick(
    path: Path,
    clock: Clock | None,
    site: Planted | None = None,
    hidden: bool = False,
    **more: Any,
) -> sites.Picked | None:
    options = Options(choices=str(path / "c.json"), **more)
    names = ("triton", "aiter")
    return sites.pick(site or Planted(), names, MI300, options, hidden, clock)


def chosen(path: Path, **ms: Any) -> str:
    found = pick(path, Clock(**ms))
    assert found is not None
    return found.name


def test_a_planted_fast_lowering_is_chosen_and_the_reason_has_the_figures(tmp_path: Path) -> None:
    found = pick(tmp_path, Clock(inductor=0.5, triton=0.4, aiter=0.45))
    assert found is not None and found.name == "triton"
    assert found.reason == (
        "measured on this machine: 0.4 ms against Inductor's own code 0.5 ms, aiter 0.45 ms"
    )
    assert sites.verdict(found.found, "aiter") == {
        "ms": 0.45, "inductor_ms": 0.5, "host_ms": 0.0, "inductor_host_ms": 0.0,
    }  # fmt: skip


def test_a_planted_slow_lowering_never_is(tmp_path: Path) -> None:
    found = pick(tmp_path, Clock(inductor=0.5, triton=0.6, aiter=5.0))
    assert found is not None and found.name == INDUCTOR
    assert found.reason.startswith("measured on this machine: Inductor's own code 0.5 ms against")


@pytest.mark.parametrize(
    ("triton", "expected"), [(0.5, INDUCTOR), (0.491, INDUCTOR), (0.489, "triton")]
)
def test_near_ties_go_to_inductor(tmp_path: Path, triton: float, expected: str) -> None:
    assert chosen(tmp_path, inductor=0.5, triton=triton, aiter=1.0) == expected


def test_more_time_of_the_host_counts_unless_it_is_hidden(tmp_path: Path) -> None:
    """An opaque call that saves 0.05 ms of the device and costs the host 0.15 ms more."""
    clock = Clock(inductor=(0.5, 0.02), triton=(0.5, 0.02), aiter=(0.45, 0.17))
    found = pick(tmp_path, clock)
    assert found is not None and found.name == INDUCTOR
    assert "aiter 0.45 ms and 0.15 ms more of the host" in found.reason
    again = pick(tmp_path, None, hidden=True)
    assert again is not None and again.name == "aiter"


def test_less_time_of_the_host_is_no_gain(tmp_path: Path) -> None:
    assert chosen(tmp_path, inductor=(0.5, 0.2), triton=(0.5, 0.02), aiter=(0.6, 0.0)) == INDUCTOR


def test_a_fast_lowering_whose_values_are_wrong_is_not_even_timed(tmp_path: Path) -> None:
    clock = Clock(inductor=0.5, triton=0.1, aiter=0.4)
    found = pick(tmp_path, clock, Planted(wrong={"triton": "wrong: its error is 3"}))
    assert found is not None and found.name == "aiter"
    assert clock.timed == [INDUCTOR, "aiter"]
    kept = store(str(tmp_path / "c.json")).find(site_machine(MI300), Planted.key)
    assert kept is not None and kept.skipped == {"triton": "wrong: its error is 3"}


def test_the_reason_says_why_a_lowering_was_not_timed(tmp_path: Path) -> None:
    clock = Clock(inductor=0.5, aiter=0.6)
    found = pick(tmp_path, clock, Planted(fails=["triton"]))
    assert found is not None and found.name == INDUCTOR
    assert found.reason.endswith("aiter 0.6 ms, triton, left out (it does not compile)")


def test_without_inductor_s_time_nothing_is_chosen(tmp_path: Path) -> None:
    clock = Clock(triton=0.1, aiter=0.4)
    assert pick(tmp_path, clock, Planted(fails=[INDUCTOR])) is None
    assert clock.timed == []
    site = Planted(fails=[INDUCTOR])
    assert pick(tmp_path, clock, site) is None
    assert site.compiles == 0, "it is known not to compile"


def test_nothing_is_measured_twice_nor_by_the_next_process(tmp_path: Path) -> None:
    pick(tmp_path, Clock(inductor=0.5, triton=0.4, aiter=0.45))
    again = Clock()
    assert pick(tmp_path, again) is not None
    path = tmp_path / "c.json"
    store(str(path)).__init__(path)  # type: ignore[misc]  # as a new process would read it
    found = pick(tmp_path, again)
    assert found is not None and found.name == "triton"
    assert again.timed == []


def test_select_measure_measures_once_more_in_a_process(tmp_path: Path) -> None:
    pick(tmp_path, Clock(inductor=0.5, triton=0.4, aiter=0.45))
    anew = Clock(inductor=0.5, triton=0.6, aiter=0.7)
    for _ in range(2):
        found = pick(tmp_path, anew, select="measure")
        assert found is not None and found.name == INDUCTOR
    assert anew.timed == [INDUCTOR, "triton", "aiter"]
    assert pick(tmp_path, None).name == INDUCTOR  # type: ignore[union-attr]


def test_a_spent_budget_leaves_it_to_the_rules_and_is_noted(tmp_path: Path) -> None:
    budget.BUDGET.spend(100)
    site, record = Planted(), Record()
    with consulted.recording(record):
        assert pick(tmp_path, Clock(inductor=0.5, triton=0.4, aiter=0.4), site) is None
    assert site.compiles == 0
    (asked,) = record.asked.values()
    assert asked.unmeasured and asked.chosen == ""


def test_a_budget_of_nothing_measures_nothing(tmp_path: Path) -> None:
    site = Planted()
    assert pick(tmp_path, Clock(inductor=0.5), site, tune_seconds=0) is None
    assert site.compiles == 0


def test_a_budget_that_ends_while_it_compiles_keeps_nothing(tmp_path: Path) -> None:
    class Slow(Planted):
        def compiled(self, names: Sequence[str]) -> tuple[dict[str, Compiled], dict[str, str]]:
            budget.BUDGET.spend(100)
            return super().compiled(names)

    clock = Clock(inductor=0.5, triton=0.4, aiter=0.4)
    assert pick(tmp_path, clock, Slow()) is None
    assert clock.timed == [] and not (tmp_path / "c.json").exists()


def test_buffers_rotate_over_more_than_the_cache() -> None:
    inputs = [torch.randn(64, 64), torch.randn(64).expand(4, 64), 3]
    size = 64 * 64 * 4 + 64 * 4
    sets = sites.rotated(inputs, cache=3 * size, most=100 * size)
    assert len(sets) * size > 2 * 3 * size
    assert len({s[0].data_ptr() for s in sets}) == len(sets)
    assert all(torch.equal(s[0], inputs[0]) and s[2] == 3 for s in sets)
    assert all(s[1].stride() == (0, 1) and torch.equal(s[1], inputs[1]) for s in sets)
    assert len(sites.rotated(inputs, cache=3 * size, most=2 * size)) == 2
    assert len(sites.rotated(inputs, cache=0, most=size)) == 1


def test_candidates_are_timed_in_turn_on_a_cpu() -> None:
    seen: list[str] = []

    def candidate(name: str, seconds: float) -> Compiled:
        def run(inputs: list[Any]) -> None:
            seen.append(name)
            time.sleep(seconds)

        return run

    candidates = {"slow": candidate("slow", 2e-3), "fast": candidate("fast", 1e-3)}
    found = sites.timed(candidates, [[1], [2]], torch.device("cpu"))
    assert found["slow"].ms > found["fast"].ms >= 1
    assert found["slow"].host_ms == found["fast"].host_ms == 0
    turns = [name for name, _ in itertools.groupby(seen)]
    assert len(turns) > 10, "in one block each, a clock that drifts would decide"


def test_figures_of_the_host_survive_the_file(tmp_path: Path) -> None:
    found = Measured({INDUCTOR: 1.0}, {INDUCTOR: 0}, {}, {INDUCTOR: 0.01})
    assert Measured.from_dict(found.to_dict()) == found
