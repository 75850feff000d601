"""The token of a graph's cache key: the same for as long as its questions have the same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rocm_passes.options import Options
from rocm_passes.rewrite.cache_key import recalled
from rocm_passes.target import Target
from rocm_passes.tuning import consulted
from rocm_passes.tuning.consulted import CONVOLUTION, FIRST, INDUCTOR, SITE, Asked, Record
from rocm_passes.tuning.store import Measured, store

MI300 = Target("amd", "gfx942", "MI300X", "2.13.0+rocm7", "3.7.0")
MACHINE, KEY = "gfx942 / torch 2.13.0", "graph"
SLOW = Measured({INDUCTOR: 1.0, "triton": 1.1}, {INDUCTOR: 0, "triton": 0})
FAST = Measured({INDUCTOR: 1.0, "triton": 0.5}, {INDUCTOR: 0, "triton": 0})


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consulted, "cache_dir", lambda: str(tmp_path / "cache"))


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(choices=str(tmp_path / "c.json"))


def site(chosen: str, unmeasured: bool = False) -> Asked:
    return Asked(SITE, MACHINE, "norm", ("triton",), chosen, unmeasured)


def compiled(options: Options, *asked: Asked) -> str:
    """A compile in which these questions were asked; the token that its key had."""
    record = recalled(KEY, options, MI300)
    for each in asked:
        record.note(each)
    consulted.keep(KEY, record)
    return record.token


def token(options: Options) -> str:
    return recalled(KEY, options, MI300).token


def test_the_process_after_the_one_that_measured_has_its_key(options: Options) -> None:
    """The key was computed before anything was measured, and what was measured then is the
    answer.
    """
    assert compiled(options) == FIRST
    store(options.choices).add(MACHINE, "norm", FAST)
    assert compiled(options, site("triton")) == FIRST
    assert token(options) == FIRST


def test_measuring_something_else_changes_nothing(options: Options) -> None:
    store(options.choices).add(MACHINE, "norm", FAST)
    before = compiled(options, site("triton"))
    store(options.choices).add(MACHINE, "another norm", SLOW)
    store(options.choices).add("gfx950", "norm", SLOW)
    assert token(options) == before


def test_another_choice_of_the_graph_s_own_is_another_key(options: Options) -> None:
    store(options.choices).add(MACHINE, "norm", SLOW)
    before = compiled(options, site(INDUCTOR))
    assert token(options) == before
    store(options.choices).add(MACHINE, "norm", FAST)
    after = token(options)
    assert after != before
    assert compiled(options, site("triton")) == after == token(options)


def test_other_figures_with_the_same_choice_are_the_same_key(options: Options) -> None:
    store(options.choices).add(MACHINE, "norm", FAST)
    before = compiled(options, site("triton"))
    faster = Measured({INDUCTOR: 0.9, "triton": 0.4}, {INDUCTOR: 0, "triton": 0})
    store(options.choices).add(MACHINE, "norm", faster)
    assert token(options) == before


def test_what_a_spent_budget_left_to_the_rules_compiles_nothing_anew(options: Options) -> None:
    """A warm start must cost no more than Inductor's own."""
    before = compiled(options, site("", unmeasured=True))
    assert token(options) == before
    store(options.choices).add(MACHINE, "norm", FAST)
    assert token(options) != before, "`rocm-passes tune` has measured it since"


def test_select_measure_measures_what_was_left(options: Options) -> None:
    again = replace(options, select="measure")
    before = compiled(again, site("", unmeasured=True))
    assert token(again) != before
    never = replace(again, tune_seconds=0)
    assert token(never) == before, "without time to measure, the rules' choice stands"


def test_a_convolution_s_choice_follows_its_memory_bound(options: Options) -> None:
    found = Measured({"taps": 1.0, "direct": 2.0}, {"taps": 300, "direct": 0})
    store(options.choices).add(MACHINE, "conv", found)

    def asked(chosen: str, bound: float | None) -> Asked:
        return Asked(CONVOLUTION, MACHINE, "conv", ("taps", "direct"), chosen, mib_at_most=bound)

    assert compiled(options, asked("direct", 100.0)) == FIRST == token(options)
    assert compiled(options, asked("taps", None)) == FIRST == token(options)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1, "token": "a"}'])
def test_a_record_that_cannot_be_read_is_none(options: Options, tmp_path: Path, text: str) -> None:
    compiled(options, site("triton"))
    (path,) = (tmp_path / "cache" / "rocm_passes").iterdir()
    path.write_text(text)
    assert token(options) == FIRST


def test_what_is_asked_elsewhere_is_not_noted() -> None:
    record = Record()
    consulted.note(site("triton"))
    with consulted.recording(record):
        consulted.note(site("triton"))
    consulted.note(site("triton"))
    assert list(record.asked) == [f"{MACHINE} norm"]
