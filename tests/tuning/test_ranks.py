"""Ranks of a process group that agree on measured choices: one process, one store, a fake clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.cache_key import recalled
from rocm_passes.target import Target
from rocm_passes.tuning import agreed, budget, ranks, tuning
from rocm_passes.tuning.consulted import CONVOLUTION, FIRST, Asked, Record, keep
from rocm_passes.tuning.store import Choices, Measured, Store
from tests.tuning.test_tuning import ABLE, ANY, KEY, MI300, Clock

WHERE = tuning.machine(MI300)
FAST = Measured({"taps": 1.0, "direct": 2.0, "unfold": 3.0}, dict.fromkeys(["taps"], 1))
CARD = ranks.card(MI300)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        #: Called at each sleep: what other ranks do meanwhile.
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def group(register: Any, rank: int, size: int = 2) -> tuple[ranks.Ranks, Time]:
    time = Time()
    return ranks.Ranks(register, rank, size, time, time.sleep), time


def decided(
    of: ranks.Ranks,
    known: Measured | None = None,
    measure: Callable[[], Measured | None] | None = lambda: FAST,
    limit: float = 30.0,
    card: str = CARD,
) -> ranks.Decision:
    return of.decided(WHERE, KEY, card, known, measure, limit)


def never() -> Measured:
    raise AssertionError("measured twice")


def test_the_first_measures_and_the_others_take_its_times() -> None:
    register = dist.HashStore()
    first, _ = group(register, 1)
    second, time = group(register, 0)
    assert decided(first).measured == FAST
    found = decided(second, measure=never)
    assert (found.measured, found.rank, found.waited, time.now) == (FAST, 1, 0.0, 0.0)
    assert first.taken_notes() == second.taken_notes() == []


def test_a_rank_waits_while_another_measures() -> None:
    register = dist.HashStore()
    waiting, time = group(register, 1)
    measuring, _ = group(register, 0)

    def measure() -> Measured:
        # The second rank comes now: it finds the claim, and sleeps until the decision is there.
        thread.start()
        slept.wait(5)
        return FAST

    slept = threading.Event()
    time.meanwhile = slept.set
    found: list[ranks.Decision] = []
    thread = threading.Thread(target=lambda: found.append(decided(waiting, None, never, 1e9)))
    assert decided(measuring, measure=measure).measured == FAST
    thread.join(5)
    assert found[0].measured == FAST and found[0].rank == 0 and found[0].waited > 0


def test_a_rank_that_dies_while_it_measures_costs_the_limit_and_all_go_by_rule() -> None:
    register = dist.HashStore()
    dead, _ = group(register, 0, 3)
    with pytest.raises(KeyboardInterrupt):
        decided(dead, measure=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    left, time = group(register, 1, 3)
    found = decided(left, measure=never, limit=30)
    assert found.measured is None and time.now == pytest.approx(30, abs=0.1)
    assert left.taken_notes() == [f"{KEY}: chosen by rule: {found.why}"]
    assert found.why == "rank 1 waited 30 s for rank 0, which measures it"
    late, time = group(register, 2, 3)
    assert decided(late, measure=never).why == found.why and time.now == 0


def test_a_measurement_that_comes_too_late_is_not_used() -> None:
    register = dist.HashStore()
    slow, _ = group(register, 0)
    impatient, _ = group(register, 1)

    def measure() -> Measured:
        assert decided(impatient, measure=never, limit=5).measured is None
        return FAST

    assert decided(slow, measure=measure).measured is None
    assert "rank 1 waited 5 s for rank 0" in slow.taken_notes()[0]


def test_a_failed_measurement_is_by_rule_for_all() -> None:
    register = dist.HashStore()
    first, second = group(register, 0)[0], group(register, 1)[0]

    def fails() -> Measured:
        raise RuntimeError("no kernel")

    assert decided(first, measure=fails).measured is None
    assert decided(second, measure=never).why == "rank 0 failed to measure: no kernel"


def test_what_a_rank_knows_is_not_measured_again() -> None:
    register = dist.HashStore()
    first, second = group(register, 1)[0], group(register, 0)[0]
    assert decided(first, known=FAST, measure=never).measured == FAST
    assert decided(second, measure=never).measured == FAST


def test_a_rank_without_time_left_decides_at_once_for_all() -> None:
    register = dist.HashStore()
    first, second = group(register, 1)[0], group(register, 0)[0]
    assert decided(first, measure=None).measured is None
    assert decided(second, measure=never).why == "rank 1 may measure no more (tune_seconds)"


def test_rank_zero_s_choices_are_the_group_s() -> None:
    register = dist.HashStore()
    zero, one = group(register, 0)[0], group(register, 1)[0]
    mine: Choices = {WHERE: {KEY: FAST}}
    assert zero.base(lambda: mine, CARD) == mine
    assert one.base(dict, CARD) == mine
    assert one.taken_notes() == []


def test_a_rank_that_compiles_alone_waits_once_for_rank_zero() -> None:
    register = dist.HashStore()
    alone, time = group(register, 1)
    mine: Choices = {WHERE: {KEY: FAST}}
    for _ in range(2):
        assert alone.base(lambda: mine, CARD) == mine
    assert time.now == pytest.approx(bounds.RANK_ZERO_SECONDS.value, abs=0.1)
    assert "rank 0 has compiled nothing in 10 s" in alone.taken_notes()[0]
    zero, time = group(register, 0)
    assert zero.base(dict, CARD) == mine and time.now == 0


def test_different_cards_are_named() -> None:
    register = dist.HashStore()
    zero, one = group(register, 0)[0], group(register, 1)[0]
    zero.base(dict, "gfx942 MI300X")
    one.base(dict, "gfx942 MI325X")
    said = "gfx942 MI300X (ranks 0), gfx942 MI325X (ranks 1)"
    assert said in one.taken_notes()[0]
    for of, card in ((one, "gfx942 MI325X"), (zero, "gfx942 MI300X")):
        of.look_for_other_cards(card)
    assert said in zero.taken_notes()[0] and one.taken_notes() == []


def test_graphs_that_were_rewritten_otherwise_are_named() -> None:
    register = dist.HashStore()
    zero, one = group(register, 0)[0], group(register, 1)[0]
    zero.same_graph("g", "a")
    one.same_graph("g", "a")
    zero.same_graph("g", "compiled again with other options")
    assert zero.taken_notes() == one.taken_notes() == []
    one.same_graph("g", "b")
    assert "this rank (1) rewrote this graph otherwise than rank 0" in one.taken_notes()[0]


class Broken:
    """A store whose host is gone."""

    def check(self, keys: list[str]) -> bool:
        raise dist.DistNetworkError("connection reset by peer")

    get = compare_set = check


def test_a_store_out_of_reach_means_rules_and_is_said() -> None:
    of, time = group(Broken(), 1)
    assert of.base(lambda: {WHERE: {KEY: FAST}}, CARD) == {}
    assert decided(of, measure=never).measured is None
    of.same_graph("g", "a")
    assert "store can't be reached: connection reset by peer" in of.taken_notes()[0]
    assert time.now == 0


def test_a_group_without_a_store_means_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: None)
    of = ranks.current()
    assert of is not None and of is ranks.current()
    assert decided(of, measure=never).measured is None
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert ranks.current() is None


# Through `pick`, with the budget and the files of two ranks.


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], ranks.Ranks]:
    """Makes this process rank 0 or 1 of one group, with a budget of its own each time."""
    register = dist.HashStore()
    both = [group(register, rank)[0] for rank in (0, 1)]

    def become(rank: int) -> ranks.Ranks:
        monkeypatch.setattr(budget, "BUDGET", budget.Budget())
        monkeypatch.setattr(ranks, "current", lambda: both[rank])
        return both[rank]

    return become


Pair = Callable[[int], ranks.Ranks]


def pick(clock: Clock | None, path: Path, target: Target = MI300, **options: Any) -> Any:
    found = tuning.pick(KEY, ABLE, ANY, target, Options(choices=str(path), **options), clock)
    return (found[0].name, found[1]) if found else None


def test_pick_takes_another_rank_s_measurement_and_keeps_it(pair: Pair, tmp_path: Path) -> None:
    pair(0)
    clock = Clock(taps=2.0, direct=3.0, unfold=2.5)
    name, reason = pick(clock, tmp_path / "0.json")
    assert (name, reason.partition(":")[0]) == ("taps", "measured on rank 0")
    pair(1)
    name, reason = pick(other := Clock(), tmp_path / "1.json")
    assert (name, reason.partition(":")[0]) == ("taps", "measured on rank 0")
    assert other.asked == []
    kept = Store(tmp_path / "1.json").find(WHERE, KEY)
    assert kept is not None and kept.ms == {"taps": 2.0, "direct": 3.0, "unfold": 2.5}


def test_ranks_with_different_files_choose_alike(pair: Pair, tmp_path: Path) -> None:
    mib = {"taps": 1, "direct": 1, "unfold": 1}
    for rank, best in enumerate(("taps", "unfold")):
        ms = dict.fromkeys(mib, 5.0) | {best: 1.0}
        Store(tmp_path / f"{rank}.json").add(WHERE, KEY, Measured(ms, mib))
    found = []
    for rank in (0, 1):
        pair(rank)
        found.append(pick(Clock(), tmp_path / f"{rank}.json")[0])
    assert found == ["taps", "taps"]


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_file_on_a_rank_changes_nothing(
    pair: Pair, tmp_path: Path, damaged: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{damaged}.json").write_text('{"format": 1, "choi')
    found = []
    for rank in (0, 1):
        pair(rank)
        clock = Clock(taps=2.0 + rank, direct=3.0, unfold=2.5)
        found.append(pick(clock, tmp_path / f"{rank}.json")[0])
    assert found == ["taps", "taps"]
    assert (tmp_path / f"{damaged}.json").read_text() == '{"format": 1, "choi'
    assert "not a file of measured choices" in caplog.text


def test_waiting_is_time_of_the_budget(pair: Pair, tmp_path: Path) -> None:
    of = pair(1)
    of.base(dict, CARD)
    of._register.compare_set(f"claim/{WHERE}|{KEY}", "", "0")
    assert pick(Clock(), tmp_path / "1.json", tune_seconds=8.0) is None
    assert budget.BUDGET.spent == pytest.approx(4.0, abs=0.1)


def test_code_compiled_before_is_used_while_the_group_would_choose_the_same(
    pair: Pair, tmp_path: Path
) -> None:
    """Whatever a rank's own file says: all ranks start from rank 0's."""
    names = tuple(low.name for low in ABLE)
    mib = dict.fromkeys(names, 1)
    fast, others = Measured(FAST.ms, mib), Measured({**FAST.ms, "taps": 9.0}, mib)
    for rank, times in enumerate((fast, others)):
        Store(tmp_path / f"{rank}.json").add(WHERE, KEY, times)
    record = Record()
    for graph, chosen in (("as all", "taps"), ("as rank 1 alone", "direct")):
        record.note(Asked(CONVOLUTION, WHERE, KEY, names, chosen))
        keep(graph, record)
    for rank in (0, 1):
        pair(rank)
        options = Options(choices=str(tmp_path / f"{rank}.json"))
        found = agreed.find(options, MI300, WHERE, KEY)
        assert found is not None and found.times == fast
        assert recalled("as all", options, MI300).token == FIRST
        assert recalled("as rank 1 alone", options, MI300).token != FIRST
