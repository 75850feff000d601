"""The convolution library's search flag: up inside our regions only, and as it was afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning import budget, tuning
from rocm_passes.tuning import library_search as searching
from rocm_passes.tuning.store import load

MI300 = Target("amd", "gfx942", "MI300X", "2.11.0+rocm7", "3.6")
SHAPES = [("conv3d", (1, 8, 3, 4, 5), (8, 8, 3, 3, 3))]


@pytest.fixture(autouse=True, params=[False, True], ids=["user: off", "user: on"])
def user_setting(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whatever the user had stands after every test."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", request.param)
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    yield request.param
    assert torch.backends.cudnn.benchmark is request.param


def region(run: Any, path: Path, **options: Any) -> Any:
    given = Options(**{"conv_search": "on", "choices": str(path / "c.json"), **options})
    return searching.searching(run, SHAPES, MI300, given)


def flag(*_: Any) -> bool:
    return torch.backends.cudnn.benchmark


def test_it_is_up_inside(tmp_path: Path) -> None:
    run = region(flag, tmp_path)
    assert [run(), run()] == [True, True]


def test_it_comes_down_after_an_exception(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        region(fail, tmp_path)()


def test_two_threads_that_overlap(tmp_path: Path, user_setting: bool) -> None:
    """The first to leave must not take the flag from the second."""
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def first() -> None:
        first_in.set()
        second_in.wait(5)

    def second() -> None:
        second_in.set()
        first_out.wait(5)
        seen.append(flag())

    a = threading.Thread(target=region(first, tmp_path))
    a.start()
    first_in.wait(5)
    b = threading.Thread(target=region(second, tmp_path))
    b.start()
    a.join()
    first_out.set()
    b.join()
    assert seen == [True]
    assert torch.backends.cudnn.benchmark is user_setting


def test_what_the_user_sets_inside_stands(tmp_path: Path, user_setting: bool) -> None:
    def turn_off() -> None:
        torch.backends.cudnn.benchmark = False

    region(turn_off, tmp_path)()
    assert torch.backends.cudnn.benchmark is False
    torch.backends.cudnn.benchmark = user_setting


def test_a_search_that_outlasts_its_share_is_recorded_and_not_repeated(
    tmp_path: Path, user_setting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def slow() -> bool:
        time.sleep(0.05)
        return flag()

    run = region(slow, tmp_path, tune_seconds=0.1)
    assert [run(), run()] == [True, user_setting]
    assert "won't be repeated" in caplog.text
    (recorded,) = load(tmp_path / "c.json")[tuning.machine(MI300)].values()
    assert recorded.skipped == {"search": "its first call took 0 s"}
    assert region(flag, tmp_path, tune_seconds=0.1)() is user_setting


def test_a_spent_budget_searches_nothing_new(tmp_path: Path, user_setting: bool) -> None:
    budget.BUDGET.spend(60)
    assert region(flag, tmp_path)() is user_setting


@pytest.mark.parametrize(
    ("shapes", "target", "options"),
    [
        (SHAPES, MI300, Options()),
        ([], MI300, Options(conv_search="on")),
        (SHAPES, Target("cpu", "", "CPU", "2.11", None), Options(conv_search="on")),
    ],
    ids=["not asked for", "no convolution", "no GPU"],
)
def test_elsewhere_the_compiled_graph_is_left_as_it_is(
    shapes: Any, target: Target, options: Options
) -> None:
    assert searching.searching(flag, shapes, target, options) is flag


def test_convolutions_are_read_off_dynamo_s_graph() -> None:
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        found.extend(searching.convolutions(gm))
        return gm.forward

    model = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 1), torch.nn.ReLU())
    torch.compile(model, backend=backend)(torch.ones(1, 2, 3, 4, 5))
    assert found == [("conv3d", (1, 2, 3, 4, 5), (3, 2, 1, 1, 1))]
