"""Noting calls ahead of a compile: the passes run, nothing is measured or compiled, and the result
is right.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rocm_passes
from rocm_passes.backend import rocm_diffusion
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.target import Target
from rocm_passes.tuning import ahead, budget, tuning
from rocm_passes.tuning.store import Measured, store
from tests.ops.conv3d_calls import LOWERINGS, call
from tests.rewriting import Rewritten, recording

ABLE = [low for low in LOWERINGS if low.name in ("taps", "direct", "unfold")]
MI300 = Target("amd", "gfx942", "MI300X", "2.11.0+rocm7", "3.6")


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 6, 3)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(torch.cat([cache, F.silu(x)], 2), [1, 1, 1, 1, 0, 0]))
        return result


def compiled(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    monkeypatch.setattr(bounds, "WORTH_MEASURING", replace(bounds.WORTH_MEASURING, value=0))
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = Causal()
    return module, torch.compile(module, backend=rocm_diffusion, dynamic=False)  # type: ignore[return-value]


INPUTS = (torch.randn(1, 4, 3, 6, 7), torch.randn(1, 4, 2, 6, 7))


@pytest.mark.parametrize("grad", [False, True])
def test_the_passes_run_and_the_result_is_eager_s(
    monkeypatch: pytest.MonkeyPatch, grad: bool
) -> None:
    module, noting = compiled(monkeypatch)
    before = len(rocm_passes.history())
    with (
        ahead.noting() as noted,
        torch.set_grad_enabled(grad),
        mock.patch(
            "torch._inductor.compile_fx._InProcessFxCompile.codegen_and_compile"
        ) as inductor,
    ):
        result = noting(*INPUTS)
    inductor.assert_not_called()
    torch.testing.assert_close(result, module(*INPUTS), rtol=0, atol=0)
    (noted_call,) = noted.calls
    # A training graph saves the padded input, so there the padding stays.
    what = "x 1x4x5x8x9 w 6x4x3x3x3" if grad else "x 1x4x2x6x7 + 1x4x3x6x7 w 6x4x3x3x3 pad 1x1"
    assert noted_call.key.removesuffix(" tf32") == f"conv3d float32 {what}"
    assert {"taps", "direct", "unfold"} <= set(noted_call.able)
    entries = [e for g in rocm_passes.history()[before:] for e in g.entries if e.idiom == "conv3d"]
    assert [e.outcome for e in entries] == ["kept" if grad else "rewritten"]


class Rotation(nn.Module):
    """As Qwen-Image has it: a complex table, indexed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(9, 4), torch.randn(9, 4)))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(z * self.table[positions].unsqueeze(1)).flatten(3)  # type: ignore[index]


def complex_calls(options: dict[str, object]) -> list[object]:
    """Those of the graph that the passes get."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, seen = Rotation(), Rewritten()
    inputs = (torch.randn(1, 5, 2, 8), torch.tensor([3, 0, 8, 1, 4]))
    noting = torch.compile(module, backend=functools.partial(recording, seen, options=options))
    with ahead.noting(), torch.no_grad():
        result = noting(*inputs)
    torch.testing.assert_close(result, module(*inputs), rtol=0, atol=0)
    (graph,) = seen.before
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [node.target for node in calls if node.meta["val"].is_complex()]


def test_complex_tables_are_real_in_the_graph_that_the_passes_get() -> None:
    aten = torch.ops.aten
    assert Counter(complex_calls({})) == {aten.view_as_complex.default: 2, aten.mul.Tensor: 1}


@pytest.mark.parametrize("options", [{"select": "off"}, {"idioms": "-rotary"}], ids=str)
def test_complex_tables_stay_where_no_rotation_may_be_rewritten(options: dict[str, object]) -> None:
    assert torch.ops.aten.index.Tensor in complex_calls(options)


def test_a_user_s_own_pass_runs_before_the_tables_are_real() -> None:
    met: list[object] = []

    def theirs(graph: torch.fx.Graph) -> None:
        met.extend(node.target for node in graph.nodes if node.op == "call_function")

    complex_calls({"joint_custom_pre_pass": theirs})
    assert torch.ops.aten.index.Tensor in met


def test_afterwards_it_is_compiled_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = compiled(monkeypatch)
    with ahead.noting():
        pass
    assert not ahead.active()
    seen = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        seen.append(rocm_diffusion(gm, inputs, caches=False))
        return seen[-1]

    torch.testing.assert_close(torch.compile(module, backend=backend)(*INPUTS), module(*INPUTS))
    assert not isinstance(getattr(seen[0], "__self__", None), torch.fx.GraphModule)


def test_calls_survive_the_way_to_another_process() -> None:
    first = call(
        (2, 4), zeros=(1, 0), dtype=torch.float32, compute=torch.bfloat16, channels_last=True
    )
    second = call((6,), dtype=torch.bfloat16)
    texts = []
    for each in (first, second, second):
        with ahead.noting() as noted:
            assert ahead.note(each.key(), ABLE, each)
        texts.append(noted.dumps())
    calls = ahead.Noted.loads(*texts).calls
    assert [c.key for c in calls] == [first.key(), second.key()]
    for found, meant in zip(calls, (first, second), strict=True):
        assert found.able == ("taps", "direct", "unfold")
        assert found.call.key() == found.key
        assert found.call.weight.shape == meant.weight.shape
        assert found.call.compute is meant.compute


def test_a_conv2d_survives_the_way_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    x, weight = torch.empty(1, 4, 9, 9), torch.empty(6, 4, 3, 3)
    meant = Conv2d(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    able = [low for low in CONV2D.lowerings if low.name == "channels_last"]
    with ahead.noting() as noted:
        assert ahead.note(meant.key(), able, meant)
    (found,) = ahead.Noted.loads(noted.dumps()).calls
    assert isinstance(found.call, Conv2d) and found.call.key() == meant.key()
    assert tuning.lowerings(found) == able
    options = Options(choices=str(tmp_path / "c.json"))
    assert tuning.measure_noted([found], options, MI300) == 1


def test_nobody_noting_nothing_noted() -> None:
    c = call((3,))
    assert not ahead.note(c.key(), ABLE, c)


def test_what_was_noted_is_measured_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    options = Options(choices=str(tmp_path / "c.json"))
    c = call((2, 4), zeros=(1, 0), dtype=torch.float32)
    with ahead.noting() as noted:
        assert tuning.pick(c.key(), ABLE, c, MI300, options) is None
    assert not (tmp_path / "c.json").exists()
    assert tuning.measure_noted(noted.calls, options, MI300) == 1
    found = store(options.choices).find(tuning.machine(MI300), c.key())
    assert isinstance(found, Measured)
    assert set(found.ms) == {"taps", "direct", "unfold"}
