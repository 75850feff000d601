"""What the ranks of torchrun hand over to rank 0, through a store as torchrun's agent has it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from rocm_passes.cli import ranks
from rocm_passes.cli.bench_ranks import OnRanks


@pytest.fixture
def port() -> Iterator[int]:
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield agent.port
    del agent


def place(rank: int, port: int) -> ranks.Place:
    return ranks.Place(rank, 3, "localhost", port)


def test_rank_zero_has_what_all_gave(port: int) -> None:
    late = threading.Timer(0.2, lambda: ranks.gathered("x", "two", place(2, port)))
    late.start()
    assert ranks.gathered("x", ["one"], place(1, port)) is None
    assert ranks.gathered("x", None, place(0, port)) == [None, ["one"], "two"]
    late.join()


def test_every_rank_has_what_all_gave_where_asked(port: int) -> None:
    others = [
        threading.Timer(0.1, lambda r=rank: ranks.gathered("x", r, place(r, port)))
        for rank in (0, 2)
    ]
    for other in others:
        other.start()
    assert ranks.gathered("x", 1, place(1, port), everywhere=True) == [0, 1, 2]
    for other in others:
        other.join()


def test_a_run_that_failed_on_one_rank_has_failed_on_all(port: int) -> None:
    failed = "the script ended with code 1"
    others = [
        threading.Timer(0.1, lambda r=rank, f=f: ranks.gathered("run 4", f, place(r, port)))
        for rank, f in ((0, failed), (2, ""))
    ]
    for other in others:
        other.start()
    said = OnRanks(place(1, port)).failed(4, "", 5.0)
    assert said == f"rank 0: {failed}"
    for other in others:
        other.join()


def test_all_ranks_make_a_run_s_process_group_on_the_port_that_rank_zero_found(port: int) -> None:
    others = [
        threading.Timer(0.1, lambda r=rank: ranks.gathered("port 4", 12345 - r, place(r, port)))
        for rank in (0, 2)
    ]
    for other in others:
        other.start()
    assert OnRanks(place(1, port)).variables(4) == {
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "MASTER_PORT": "12345",
    }
    for other in others:
        other.join()


def test_rank_zero_waits_no_longer_than_it_says(port: int) -> None:
    ranks.gathered("x", "one", place(1, port))
    assert ranks.gathered("x", "zero", place(0, port), seconds=0.2) == ["zero", "one", None]


def test_without_an_agent_a_rank_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = ranks.gathered("x", "mine", place(1, 1), seconds=0.2)
    assert found == [None, "mine", None]
    assert "torchrun's agent can't be reached" in capsys.readouterr().err


AGENT = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "9"}


def test_a_rank_of_torchrun_knows_its_place() -> None:
    found = ranks.of_this_process({**AGENT, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert found == ranks.Place(1, 2, "h", 9)


@pytest.mark.parametrize("others", [{}, {"WORLD_SIZE": "1"}, AGENT])
def test_others_are_alone(others: dict[str, str]) -> None:
    assert ranks.of_this_process(others) is None
