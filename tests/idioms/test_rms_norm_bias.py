"""RMSNorm with a bias, alone: every spelling, the lowerings that add it or refuse it, and what is
no bias.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rocm_passes.ops import rms_norm as op
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, draw, use_reference
from tests.idioms.rms_norm_spellings import (
    BIASED,
    Biased,
    D,
    bias_without_weight,
    biased,
    biased_in_float32,
    diffusers,
    exact,
    with_tables,
)
from tests.on_the_gpu import run_where_kernels_run
from tests.rewriting import rewrite

pytestmark = pytest.mark.pairwise

CPU = Target("cpu", "", "CPU", torch.__version__, None)


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


@pytest.mark.parametrize("spelling", BIASED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_every_spelling_with_a_bias(spelling: Biased, dtype: torch.dtype) -> None:
    x, w, b = with_tables(dtype)
    seen = rewrite(spelling, x, w, b)
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "rms_norm",
        "rewritten",
        {"rms_norm": 1},
    )
    assert torch.ops.aten.add.Tensor not in seen.targets()
    assert site.parameters["bias"] is dtype
    assert site.parameters["weight"] is (None if spelling is bias_without_weight else dtype)
    rounds = dtype is not F32 and spelling is not biased_in_float32
    assert site.parameters["rounds_before_bias"] is (dtype if rounds else None)
    assert_no_worse(seen.result, spelling(x, w, b), exact(BIASED[spelling], x, w) + b.double())


def test_rounding_before_the_bias_is_reproduced() -> None:
    """Bit for bit: three roundings."""
    x, w, b = with_tables(BF16)
    assert torch.equal(rewrite(biased, x, w, b).result, biased(x, w, b))
    assert not torch.equal(biased(x, w, b), biased_in_float32(x, w, b))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("rounds", [True, False])
def test_the_kernel_adds_the_bias(
    dtype: torch.dtype, weighted: bool, offset: float, rounds: bool
) -> None:
    kernel = op.RMS_NORM.lowering("triton")
    assert kernel is not None and kernel.run is not None
    x, w, b = with_tables(dtype)
    round_to = dtype if rounds else None
    weight = w if weighted else None
    call = op.RmsNorm(x, weight, b.view(1, 1, D), None, 1e-6, offset, round_to, round_to, dtype)
    wide = op.RmsNorm(
        **{k: v.double() if isinstance(v, Tensor) else v for k, v in call.arguments().items()}
    )
    exact = replace(wide, round_to=None, round_product=None, out_dtype=torch.float64)
    ours = run_where_kernels_run(kernel, call)
    assert ours.is_contiguous()
    assert_no_worse(ours, op.reference(call), op.reference(exact), units=2.0)


def test_the_kernel_s_one_rounding_is_noted() -> None:
    kernel = op.RMS_NORM.lowering("triton")
    assert kernel is not None
    x, w, b = with_tables(BF16)
    call = op.RmsNorm(x, w, b, None, 1e-6, 0.0, None, BF16, BF16)
    assert "rounded once" in (kernel.note(call, CPU) or "")
    assert kernel.note(replace(call, round_product=None), CPU) is None


def test_aiter_refuses_a_bias() -> None:
    aiter = op.RMS_NORM.lowering("aiter")
    assert aiter is not None
    x, w, b = with_tables(BF16)
    call = op.RmsNorm(x, w, b, None, 1e-6, 0.0, None, BF16, BF16)
    assert aiter.refuses(call, CPU) == "aiter's rms_norm has no bias"
    assert "bias" not in (aiter.refuses(replace(call, bias=None), CPU) or "")


def test_broadcast_bias() -> None:
    x, w, b = with_tables(BF16)
    seen = rewrite(biased, x, w, b.view(1, 1, D))
    assert seen.only().parameters["bias"] is BF16
    assert torch.equal(seen.result, biased(x, w, b))


def test_a_float32_bias_gives_float32() -> None:
    x, w, b = with_tables(BF16)
    seen = rewrite(biased, x, w, b.float())
    site = seen.only()
    assert (site.parameters["bias"], site.parameters["out_dtype"]) == (F32, F32)
    assert torch.equal(seen.result, biased(x, w, b.float()))


NO_BIAS: dict[str, tuple[Biased, tuple[int, ...], torch.dtype]] = {
    "a residual of one row": (biased, (1, 1, D), BF16),
    "a tensor of every row": (biased, (2, 7, D), BF16),
    "one value of each row": (biased, (7, 1), BF16),
    "more dimensions": (biased, (1, 1, 1, D), BF16),
    "a widening before it": (lambda x, w, b: diffusers(x, w).float() + b, (D,), F32),
    "a factor": (lambda x, w, b: torch.add(diffusers(x, w), b, alpha=2), (D,), BF16),
    "integers": (lambda x, w, b: diffusers(x, w) + b.to(torch.int32), (D,), BF16),
    "subtracted": (lambda x, w, b: diffusers(x, w) - b, (D,), BF16),
    "another use": (lambda x, w, b: (lambda y: y + b + y.cos())(diffusers(x, w)), (D,), BF16),
}


@pytest.mark.parametrize("what", NO_BIAS)
def test_what_is_no_bias_stays_outside(what: str) -> None:
    fn, shape, dtype = NO_BIAS[what]
    x = draw(*(shape if what == "a residual of one row" else (2, 7, D)), dtype=BF16)
    w, b = draw(D, dtype=BF16, seed=1), draw(*shape, dtype=dtype, seed=2)
    seen = rewrite(fn, x, w, b, options={"idioms": "rms_norm"})
    site = seen.only()
    assert (site.outcome, site.parameters["bias"], site.parameters["rounds_before_bias"]) == (
        "rewritten",
        None,
        None,
    )
    torch.testing.assert_close(seen.result, fn(x, w, b), rtol=2e-2, atol=2e-2)


def test_a_widening_after_the_bias_is_no_part_of_it() -> None:
    def widened(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return biased(x, w, b).float() * 1.001

    x, w, b = with_tables(BF16)
    seen = rewrite(widened, x, w, b)
    assert (seen.only().parameters["bias"], seen.only().parameters["out_dtype"]) == (BF16, BF16)
    torch.testing.assert_close(seen.result, widened(x, w, b))
