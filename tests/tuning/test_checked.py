"""A measured lowering whose result is wrong is never chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.rewrite.choose import choose
from rocm_passes.rewrite.match import Idiom
from rocm_passes.target import Target
from rocm_passes.tuning import checked, rounds, tuning
from rocm_passes.tuning import measure as measuring
from tests.ops.conv3d_calls import LOWERINGS, call
from tests.small_graphs import Anything

GPU = Target("amd", "gfx942", "faked", torch.__version__, "3.7.1")
DIRECT, TAPS = (next(low for low in LOWERINGS if low.name == n) for n in ("direct", "taps"))
SMALL = call((2, 4), zeros=(1, 0), channels=8, out=8, size=(9, 7), dtype=torch.float32)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(checked, "_KNOWN", {})
    yield


def planted(change: Callable[[torch.Tensor], torch.Tensor]) -> Lowering[Conv3d]:
    """A lowering that computes something else."""

    def write(b: Any, made: Conv3d) -> Any:
        assert TAPS.write is not None
        return change(TAPS.write(b, made))

    return replace(TAPS, name="planted", write=write)


FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "frames in reverse": lambda y: y.flip(2),
    "1 % too large": lambda y: y * 1.01,
    "rounded to 16 bits": lambda y: y.bfloat16().float(),
    "the last row is zero": lambda y: torch.cat([y[..., :-1, :], 0 * y[..., -1:, :]], -2),
    "not a number": lambda y: y * float("nan"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_lowering_is_left_out_however_fast_it_is(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def clock(candidates: dict[str, Any], burst: Any, **_: Any) -> dict[str, float]:
        return {name: 1e-6 if name == "planted" else 1e-3 for name in candidates}

    monkeypatch.setattr(rounds, "in_turn", clock)
    options = Options(choices=str(tmp_path / "choices.json"))
    able = [planted(FAULTS[fault]), DIRECT, TAPS]
    found = tuning.pick("key", able, SMALL, GPU, options, measuring.measure)
    assert found is not None and found[0].name in ("direct", "taps")
    again = measuring.measure(able, SMALL)
    assert set(again.ms) == {"direct", "taps"}
    assert again.skipped["planted"].startswith("wrong: its error against float64 is")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_ones_are_not_left_out(dtype: torch.dtype) -> None:
    """Strides, dilation, groups, pieces, zero frames, padding."""
    for c in (
        call((2, 4), zeros=(1, 0), channels=8, out=8, size=(9, 7), dtype=dtype),
        call((1,), zeros=(2, 0), channels=4, out=6, size=(5, 5), dtype=dtype),
        replace(call((5,), channels=4, out=4, size=(9, 9), dtype=dtype), stride=(2, 2, 1)),
        replace(call((6,), channels=4, out=4, size=(9, 9), dtype=dtype), dilation=(1, 2, 2)),
    ):
        able = [low for low in LOWERINGS if low.refuses(c, GPU) is None and low.name != "triton"]
        found = measuring.measure(able, c)
        assert not [r for r in found.skipped.values() if r.startswith("wrong")], found.skipped
        assert len(found.ms) > 1


@pytest.mark.parametrize("upsample", [(1, 1), (2, 2), (1, 3)])
def test_images_are_checked_too(upsample: tuple[int, int]) -> None:
    x, weight = torch.empty(1, 4, 9, 9), torch.empty(6, 2, 3, 3)
    c = Conv2d(x, weight, torch.empty(6), [2, 1], [1, 1], [1, 2], False, [0, 0], 2)
    c = replace(c, upsample=upsample)
    right = CONV2D.lowering("channels_last")
    assert right is not None

    def write(b: Any, made: Conv2d) -> Any:
        assert right.write is not None
        return right.write(b, made) * 1.01

    found = measuring.measure([right, replace(right, name="planted", write=write)], c)
    assert set(found.ms) == {"channels_last"}
    assert found.skipped["planted"].startswith("wrong: ")


def test_the_rules_do_not_choose_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other was measured within the bound of memory, the rules decide among the others."""
    checked.remember(SMALL.key(), {"taps": "wrong: its error", "unfold": "out of memory"})
    assert checked.known(SMALL, "taps") == "wrong: its error"
    assert checked.known(SMALL, "unfold") is None
    assert checked.known(Anything(), "taps") is None
    monkeypatch.setattr("rocm_passes.policy.verdict", lambda *_: (True, "a rule"))
    site: Any = type("Site", (), {"values": lambda self: SMALL})()
    idiom = Idiom("conv3d", lambda g, c: iter(()), (TAPS, DIRECT))
    choice = choose(idiom, site, GPU, Options())
    assert choice.lowering is DIRECT
    verdicts = {v.lowering: (v.verdict, v.reason) for v in choice.verdicts}
    assert verdicts["taps"] == ("wrong", "wrong: its error")
