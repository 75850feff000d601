"""A linear layer and GELU: one product with an epilogue where that computes the same form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config

from rocm_passes.ops.linear_gelu import LINEAR_GELU, LinearGelu
from rocm_passes.target import Target
from rocm_passes.tuning.measure import measure
from rocm_passes.tuning.store import Measured
from tests.accuracy import assert_no_worse
from tests.rewriting import Rewritten, rewrite

aten = torch.ops.aten
EPILOGUE = {"lowering": {"linear_gelu": "epilogue"}}


def run(fn: Any, *args: Any, **options: Any) -> Rewritten:
    return rewrite(fn, *args, options={"idioms": "linear_gelu", "tune_seconds": 0, **options})


def layer(dtype: torch.dtype = torch.float32, width: int = 48) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(16, width, dtype=dtype), torch.randn(2, 5, 16).to(dtype)


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6", interpreted=True)
    monkeypatch.setattr("rocm_passes.backend.Target.of_inputs", lambda _: made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_product_within_the_accuracy_bar(dtype: torch.dtype) -> None:
    """A CPU's epilogue computes the exact form."""
    linear, x = layer(dtype)
    seen = run(lambda x: F.gelu(linear(x)), x, **EPILOGUE)
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", "epilogue"), site.reason
    assert seen.targets("after").count(aten._addmm_activation.default) == 1
    assert aten.addmm.default not in seen.targets("after")
    right = F.gelu(F.linear(x.double(), linear.weight.double(), linear.bias.double()))
    assert seen.result.shape == (2, 5, 48)
    assert_no_worse(seen.result, F.gelu(linear(x)), right)


def refused(fn: Any, *args: Any, **options: Any) -> str:
    site = run(fn, *args, **{**EPILOGUE, **options}).only()
    assert site.outcome == "refused"
    return site.reason


def test_refused_where_the_epilogue_computes_the_other_form(amd: None) -> None:
    linear, x = layer()
    reason = refused(lambda x: F.gelu(linear(x)), x)
    assert reason == "epilogue: gelu(approximate='none'): on a GPU the epilogue computes 'tanh'"


def test_refused_on_a_cpu_for_the_tanh_form() -> None:
    linear, x = layer()
    assert "on a CPU" in refused(lambda x: F.gelu(linear(x), approximate="tanh"), x)


def test_taken_for_the_tanh_form_on_a_gpu(amd: None) -> None:
    linear, x = layer()
    seen = run(lambda x: F.gelu(linear(x), approximate="tanh"), x, **EPILOGUE)
    assert seen.only().lowering == "epilogue"
    assert aten._addmm_activation.default in seen.targets("after")


def test_refused_where_inductor_fuses_into_its_own_product() -> None:
    linear, x = layer()
    with config.patch(max_autotune_gemm=True):
        assert "max_autotune" in refused(lambda x: F.gelu(linear(x)), x)


def test_refused_where_the_product_is_used_elsewhere() -> None:
    linear, x = layer()

    def kept(x: Tensor) -> tuple[Tensor, Tensor]:
        y = linear(x)
        return F.gelu(y), y

    assert "used elsewhere too" in refused(kept, x)


def test_refused_for_a_bias_of_rows_and_for_factors() -> None:
    x, weight, rows = torch.randn(5, 16), torch.randn(16, 8), torch.randn(5, 8)
    assert "its bias has shape (5, 8)" in refused(lambda x: F.gelu(torch.addmm(rows, x, weight)), x)
    half = torch.randn(8)
    reason = refused(lambda x: F.gelu(torch.addmm(half, x, weight, alpha=0.5)), x)
    assert "has a factor" in reason


def test_refused_with_strict_numerics_in_16_bits() -> None:
    linear, x = layer(torch.bfloat16)
    reason = refused(lambda x: F.gelu(linear(x)), x, rewrite_numerics="strict")
    assert "rounds once, after GELU" in reason


def test_it_is_left_to_inductor_unless_it_is_measured() -> None:
    linear, x = layer()
    site = run(lambda x: F.gelu(linear(x)), x, select="auto").only()
    assert site.outcome == "kept" and "by measurement only" in site.reason
    assert "published: sgl-project/sglang#33536" in site.reason


def test_a_measurement_decides(amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 1024), torch.randn(1024, 512)

    def timer(lowerings: Any, call: Any, watch: Any) -> Measured:
        assert [low.name for low in lowerings] == ["epilogue", "addmm"]
        return Measured({"epilogue": 1.0, "addmm": 1.2}, {"epilogue": 0, "addmm": 0}, {})

    monkeypatch.setattr("rocm_passes.tuning.measure.measure", timer)

    def feed_forward(x: Tensor) -> Tensor:
        return F.gelu(linear(x), approximate="tanh")

    site = run(feed_forward, x, select="auto", tune_seconds=60).only()
    assert (site.lowering, site.reason) == (
        "epilogue",
        "measured on this machine: 1 ms against addmm 1.2 ms",
    )


def test_what_is_measured() -> None:
    x, weight, bias = torch.randn(64, 32), torch.randn(32, 48), torch.randn(48)
    call = LinearGelu(x, weight, bias, (2, 32, 48), "none")
    found = measure(LINEAR_GELU.lowerings, call)
    assert set(found.ms) == {"epilogue", "addmm"} and found.skipped == {}
