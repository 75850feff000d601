"""Choosing by measurement: within the budget, within the memory bound, once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rocm_passes.idioms.convolution import conv2d, conv3d
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.choose import asked
from rocm_passes.target import AMD_ARCHITECTURES, Target
from rocm_passes.tuning import budget, tuning
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning.store import Measured, Store, store
from tests.doubles.aiter_double import absent, installed
from tests.ops.conv3d_calls import LOWERINGS, call

MI300 = Target("amd", "gfx942", "MI300X", "2.11.0+rocm7", "3.6")
H200 = Target("nvidia", "sm_90", "H200", "2.11.0+cu130", "3.6")
ABLE = [low for low in LOWERINGS if low.name in ("taps", "direct", "unfold")]
KEY = "conv3d some call"
ANY = call((1,))


@pytest.fixture(autouse=True)
def fresh_budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    yield


class Clock:
    """Stands in for a measurement: times by name, and who was asked."""

    def __init__(self, seconds: float = 0.0, **ms: float | str) -> None:
        self.seconds = seconds
        self.ms = ms
        self.asked: list[str] = []

    def __call__(
        self, lowerings: Sequence[Lowering[Any]], given: Conv3d, watch: measuring.Watch
    ) -> Measured:
        found = Measured({}, {}, {})
        for lowering in lowerings:
            self.asked.append(lowering.name)
            time.sleep(self.seconds)
            answer = self.ms[lowering.name]
            if isinstance(answer, str):
                found = Measured(found.ms, found.mib, {**found.skipped, lowering.name: answer})
            else:
                mib = 10 if lowering.name == "direct" else 100
                found = Measured(
                    {**found.ms, lowering.name: answer},
                    {**found.mib, lowering.name: mib},
                    found.skipped,
                )
            if not watch(lowering.name, self.seconds):
                break
        return found


def pick(clock: Clock | None, path: Path, **options: Any) -> Any:
    found = tuning.pick(KEY, ABLE, ANY, MI300, Options(choices=str(path), **options), clock)
    return (found[0].name, found[1]) if found else None


def test_the_fastest_is_taken_and_the_reason_has_the_numbers(tmp_path: Path) -> None:
    found = pick(Clock(taps=2.0, direct=3.0, unfold=2.5), tmp_path / "c.json")
    assert found == ("taps", "measured on this machine: 2 ms against direct 3 ms, unfold 2.5 ms")


def test_the_least_memory_wins_within_the_noise(tmp_path: Path) -> None:
    assert pick(Clock(taps=2.0, direct=2.03, unfold=2.5), tmp_path / "a.json")[0] == "direct"
    assert pick(Clock(taps=2.0, direct=2.05, unfold=2.5), tmp_path / "b.json")[0] == "taps"


def test_the_memory_bound_holds(tmp_path: Path) -> None:
    clock = Clock(taps=2.0, direct=3.0, unfold=2.5)
    assert pick(clock, tmp_path / "c.json", conv_memory_mib=50)[0] == "direct"
    assert pick(clock, tmp_path / "c.json", conv_memory_mib=5) is None


@pytest.mark.parametrize(
    ("usual", "options", "expected"),
    [
        (50.0, {}, "direct"),
        (5.0, {}, "direct"),
        (50.0, {"conv_memory_mib": 0}, "taps"),
        (50.0, {"conv_memory_mib": 200}, "taps"),
        (5.0, {"conv_memory_mib": 50}, "direct"),
    ],
)
def test_the_usual_bound_holds_where_the_user_has_given_none(
    tmp_path: Path, usual: float, options: dict[str, Any], expected: str
) -> None:
    """And where nothing keeps to it, the least memory is taken; 0 lifts it."""
    chosen = Options(choices=str(tmp_path / "c.json"), **options)
    clock = Clock(taps=2.0, direct=3.0, unfold=2.5)
    found = tuning.pick(KEY, ABLE, ANY, MI300, chosen, clock, usual)
    assert found is not None
    assert found[0].name == expected
    if expected == "direct":
        assert "taps 2 ms, which needs 100 MiB" in found[1]


def test_nothing_is_measured_twice_nor_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    first = Clock(taps=2.0, direct=3.0, unfold=2.5)
    pick(first, path)
    assert first.asked == ["taps", "direct", "unfold"]
    again = Clock()
    assert pick(again, path)[0] == "taps"
    store(str(path)).__init__(path)  # type: ignore[misc]  # as a new process would read it
    assert pick(again, path)[0] == "taps"
    assert again.asked == []


def test_a_spent_budget_leaves_it_to_the_rules(tmp_path: Path) -> None:
    clock = Clock(0.05, taps=2.0, direct=3.0, unfold=2.5)
    assert pick(clock, tmp_path / "c.json", tune_seconds=0.01) is not None
    assert clock.asked == ["taps"]
    options = Options(choices=str(tmp_path / "c.json"), tune_seconds=0.01)
    assert tuning.pick("another call", ABLE, ANY, MI300, options, clock) is None
    assert clock.asked == ["taps"]


def test_a_budget_of_nothing_measures_nothing(tmp_path: Path) -> None:
    clock = Clock()
    assert pick(clock, tmp_path / "c.json", tune_seconds=0) is None
    assert clock.asked == []
    assert not (tmp_path / "c.json").exists()


def test_a_lowering_that_fails_is_left_out_and_remembered(tmp_path: Path) -> None:
    clock = Clock(taps="RuntimeError: miopenStatusUnknownError", direct=3.0, unfold="out of memory")
    assert pick(clock, tmp_path / "c.json")[0] == "direct"
    kept = Store(tmp_path / "c.json").find(tuning.machine(MI300), KEY)
    assert kept is not None
    assert kept.skipped == {
        "taps": "RuntimeError: miopenStatusUnknownError",
        "unfold": "out of memory",
    }
    assert pick(again := Clock(), tmp_path / "c.json")[0] == "direct"
    assert again.asked == []


def test_a_call_known_in_part_is_measured_whole(tmp_path: Path) -> None:
    """Times of two occasions are not compared."""
    store(str(tmp_path / "c.json")).add(
        tuning.machine(MI300), KEY, Measured({"taps": 2.0}, {"taps": 100})
    )
    clock = Clock(taps=2.0, direct=3.0, unfold=2.5)
    assert pick(clock, tmp_path / "c.json")[0] == "taps"
    assert clock.asked == ["taps", "direct", "unfold"]


def test_a_call_that_eats_the_budget_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pick(Clock(0.05, taps=2.0, direct=3.0, unfold=2.5), tmp_path / "c.json", tune_seconds=0.1)
    assert "it won't be repeated" in caplog.text


def test_a_cpu_is_never_measured(tmp_path: Path) -> None:
    cpu = Target("cpu", "", "CPU", "2.11", None)
    assert tuning.pick(KEY, ABLE, ANY, cpu, Options(choices=str(tmp_path / "c.json"))) is None


def test_the_machine_names_what_a_measurement_depends_on() -> None:
    assert tuning.machine(MI300).startswith("gfx942 / torch 2.11.0")


def test_a_call_s_key_tells_calls_apart() -> None:
    one = call((2, 4), zeros=(1, 0), dtype=torch.bfloat16, channels_last=True)
    assert (
        one.key() == "conv3d bfloat16 x 1x4x2x5x6 + 1x4x4x5x6 w 5x4x3x3x3 pad 1x1 zero frames 1x0 "
        "channels-last"
    )
    different = [
        call((6,)),
        call((2, 4)),
        call((2, 4), zeros=(1, 0)),
        call((6,), stride=(1, 2, 2)),
        call((6,), groups=2, out=4),
        call((6,), dilation=(2, 1, 1)),
        call((6,), padding=(0, 1)),
        call((6,), channels_last=True),
        call((6,), dtype=torch.float32),
        call((6,), compute=torch.bfloat16),
    ]
    assert len({c.key() for c in different}) == len(different)


def test_flops_are_those_of_the_formula() -> None:
    assert call((3,), zeros=(2, 0), channels=4, out=5, size=(5, 6)).flops() == 2 * 3 * 5 * 6 * (
        5 * 4 * 27
    )


def test_measured_holds_nothing_unknown() -> None:
    assert Measured({}, {}).best() is None


CANDIDATES = {"triton", "direct", "unfold"}


@pytest.mark.parametrize(("triton", "expected"), [(1.0, "triton"), (9.0, "direct")])
@pytest.mark.parametrize("arch", AMD_ARCHITECTURES)
def test_the_kernel_is_taken_where_it_measures_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, triton: float, expected: str, arch: str
) -> None:
    """Through `choose`, on a faked GPU, in a graph that is not channels-last."""
    clock = Clock(triton=triton, direct=3.0, unfold=5.0)
    monkeypatch.setattr(measuring, "measure", clock)
    monkeypatch.setattr(bounds, "WORTH_MEASURING", replace(bounds.WORTH_MEASURING, value=0))
    c = call((2, 4), dtype=torch.bfloat16)
    options, target = (
        Options(choices=str(tmp_path / "c.json")),
        Target("amd", arch, arch, "2.11", "3.6"),
    )
    able = [low for low in LOWERINGS if asked(low, c, target, options).verdict == "able"]
    found = conv3d.measured(able, c, target, options)
    assert {low.name for low in able} == set(clock.asked) == CANDIDATES
    assert found is not None and found[0].name == expected
    assert f"triton {triton:g} ms" in found[1] or found[0].name == "triton"


def test_the_kernel_keeps_to_the_memory_bound(tmp_path: Path) -> None:
    c = call((2, 4), dtype=torch.bfloat16)
    able = [low for low in LOWERINGS if low.name in CANDIDATES]
    options = Options(choices=str(tmp_path / "c.json"), conv_memory_mib=50)
    clock = Clock(triton=1.0, direct=3.0, unfold=5.0)
    found = tuning.pick(c.key(), able, c, MI300, options, clock)
    assert found is not None and found[0].name == "direct"
    assert "triton 1 ms, which needs 100 MiB" in found[1]


def test_a_store_without_the_kernel_is_used_where_nothing_can_be_measured(tmp_path: Path) -> None:
    """It was written before there was a Triton lowering."""
    c = call((2, 4), dtype=torch.bfloat16)
    able = [low for low in LOWERINGS if low.name in CANDIDATES]
    old = Measured(
        {"direct": 3.0, "unfold": 2.0, "taps": 1.0}, {"direct": 0, "unfold": 9, "taps": 9}
    )
    store(str(tmp_path / "c.json")).add(tuning.machine(MI300), c.key(), old)
    options = Options(choices=str(tmp_path / "c.json"), tune_seconds=0)
    found = tuning.pick(c.key(), able, c, MI300, options)
    assert found is not None and found[0].name == "unfold"


def image(size: int = 64, **changes: Any) -> Conv2d:
    x = torch.empty(1, 8, size, size, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(16, 8, 3, 3, dtype=torch.bfloat16, device="meta")
    return replace(Conv2d(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), **changes)


@pytest.mark.parametrize(("triton", "expected"), [(1.0, "triton"), (9.0, "channels_last")])
def test_a_conv2d_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, triton: float, expected: str
) -> None:
    monkeypatch.setattr(measuring, "measure", clock := Clock(triton=triton, channels_last=3.0))
    options = Options(choices=str(tmp_path / "c.json"))
    able = [low for low in CONV2D.lowerings if low.name in ("channels_last", "triton")]
    assert conv2d.measured(able, image(), MI300, options) is None
    assert conv2d.measured(able[:1], image(1024), MI300, options) is None
    assert clock.asked == []
    found = conv2d.measured(able, image(1024), MI300, options)
    assert found is not None and found[0].name == expected
    kept = Store(tmp_path / "c.json").find(tuning.machine(MI300), image(1024).key())
    assert kept is not None and set(kept.ms) == {"triton", "channels_last"}


def test_a_measurement_holds_for_one_version_of_aiter() -> None:
    with absent():
        alone = tuning.machine(MI300)
    with installed("0.1.20"):
        assert tuning.machine(MI300) == f"{alone} / aiter 0.1.20"
        assert "aiter" not in tuning.machine(H200)


def test_a_conv2d_s_key_tells_calls_apart() -> None:
    assert image().key() == "conv2d bfloat16 x 1x8x64x64 w 16x8x3x3 pad 1x1 channels-last"
    assert image().flops() == 2 * 16 * 64 * 64 * 8 * 9
    different = [
        image(),
        image(65),
        image(stride=[2]),
        image(padding=[0]),
        image(padding=[0, 1]),
        image(dilation=[1, 2]),
        image(groups=2),
        image(channels_last=False),
        image(x=image().x.half(), weight=image().weight.half()),
        image(weight=image().weight[:8]),
    ]
    assert len({c.key() for c in different}) == len(different)
