"""The norm kernel against float64: chains, weights, dtypes, values that are no numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.norms.norm_plan import (
    MAX_RESIDENT_WIDTH,
    NormTile,
)
from tests.kernels.kernel_calls import fused_norm
from tests.kernels.norm_calls import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    add_rms_norm,
    doubles,
    normal,
    rms,
    rms_norm,
)
from tests.kernels.norm_reference import assert_accurate, wide
from tests.suites import examples

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "width", [1, 2, 7, 64, 128, 129, 1000, 1536, 3072, 5121, MAX_RESIDENT_WIDTH + 3]
)
def test_rms_norm_at_every_kind_of_width(width: int, dtype: torch.dtype) -> None:
    x, w = normal(2, 3, width, dtype=dtype), normal(width, dtype=dtype, seed=1)
    got = rms_norm(x, w, 1e-6)
    assert got.is_contiguous()
    assert_accurate(got, rms(*doubles(x, w), 1e-6), rms(x, w, 1e-6))


@pytest.mark.parametrize("width", [5, 640, 2050, MAX_RESIDENT_WIDTH + 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_weight_and_bias(width: int, dtype: torch.dtype) -> None:
    x = normal(3, width, dtype=dtype)
    w, b = normal(width, dtype=dtype, seed=1), normal(width, dtype=dtype, seed=2)

    def original(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w, b, 1e-5)

    (got,), total = fused_norm(x, kind="layer", eps=1e-5, weight=w, bias=b)
    assert total is None
    assert_accurate(got, original(*doubles(x, w, b)), original(x, w, b))


@pytest.mark.parametrize("width", [300, MAX_RESIDENT_WIDTH + 1])
def test_layer_norm_of_a_large_mean(width: int) -> None:
    x = normal(2, width) + 1000
    (got,), _ = fused_norm(x, kind="layer", eps=1e-6)
    assert_accurate(
        got, F.layer_norm(x.double(), (width,), eps=1e-6), F.layer_norm(x, (width,), eps=1e-6)
    )


@pytest.mark.parametrize("tile", [None, NormTile(chunk=16, rows=4, resident=False, num_warps=4)])
@pytest.mark.parametrize("table_shape", [(40,), (1, 1, 40), (2, 1, 40), (2, 9, 40), (2, 9, 1), ()])
def test_wan_chain_with_tables_of_every_shape(
    table_shape: tuple[int, ...], tile: NormTile | None
) -> None:
    """fp32 arithmetic throughout, the sum rounded to bf16 before the norm reads it."""
    x, y = normal(2, 9, 40, dtype=BF16), normal(2, 9, 40, dtype=BF16, seed=1)
    gate, scale, shift = (normal(*table_shape, seed=k) for k in (2, 3, 4))

    def original(
        x: Tensor, y: Tensor, g: Tensor, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        s = (wide(x) + y * g).to(x.dtype)
        n = F.layer_norm(wide(s), (40,), None, None, 1e-6)
        return (n * (1 + scale) + shift).to(x.dtype), s

    (got,), total = fused_norm(
        x, kind="layer", eps=1e-6, branch=y, gate=gate, modulations=[(scale, shift)],
        sum_dtype=BF16, round_sum=True, tile=tile,
    )  # fmt: skip
    exact, original_ = (
        original(*doubles(x, y, gate, scale, shift)),
        original(x, y, gate, scale, shift),
    )
    assert total is not None
    assert_accurate(total, exact[1], original_[1])
    assert_accurate(got, exact[0], original_[0])


@pytest.mark.parametrize("width", [24, MAX_RESIDENT_WIDTH + 8])
def test_z_image_chain_normalises_the_branch(width: int) -> None:
    x, a = normal(1, 4, width, dtype=BF16), normal(1, 4, width, dtype=BF16, seed=1)
    gate, scale = normal(1, 1, width, dtype=BF16, seed=2), normal(1, 1, width, dtype=BF16, seed=3)
    wa, w = normal(width, dtype=BF16, seed=4), normal(width, dtype=BF16, seed=5)

    def original(
        x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        s = x + g * rms(a, wa, 1e-5)
        return rms(s, w, 1e-5) * scale, s

    (got,), total = fused_norm(
        x, kind="rms", eps=1e-5, branch=a, gate=gate, branch_weight=wa, branch_eps=1e-5, weight=w,
        modulations=[(scale, None)], scale_offset=0.0, sum_dtype=BF16, round_sum=True,
    )  # fmt: skip
    exact, plain = original(*doubles(x, a, gate, wa, w, scale)), original(x, a, gate, wa, w, scale)
    assert total is not None
    assert_accurate(total, exact[1], plain[1])
    assert_accurate(got, exact[0], plain[0])


@pytest.mark.parametrize("width", [24, MAX_RESIDENT_WIDTH + 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemmas_weight_on_the_branch(width: int, dtype: torch.dtype) -> None:
    """x + gate * norm(branch) * (1 + w), and of its sum a norm with a plain weight and a bias."""
    x, a = normal(1, 4, width, dtype=dtype), normal(1, 4, width, dtype=dtype, seed=1)
    gate, wa = normal(1, 1, width, dtype=dtype, seed=2), normal(width, dtype=dtype, seed=3)
    w, b = normal(width, dtype=dtype, seed=4), normal(width, dtype=dtype, seed=5)

    def original(
        x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        s = x + g * (rms(wide(a), None, 1e-5) * (1 + wide(wa))).to(x.dtype)
        return rms(s, w, 1e-5) + b, s

    (got,), total = fused_norm(
        x, kind="rms", eps=1e-5, branch=a, gate=gate, branch_weight=wa, branch_weight_offset=1.0,
        branch_eps=1e-5, weight=w, bias=b, sum_dtype=dtype, round_sum=True,
    )  # fmt: skip
    exact, plain = original(*doubles(x, a, gate, wa, w, b)), original(x, a, gate, wa, w, b)
    assert total is not None
    assert_accurate(total, exact[1], plain[1])
    assert_accurate(got, exact[0], plain[0])


def test_one_norm_feeds_two_modulations() -> None:
    x = normal(2, 5, 33, dtype=BF16)
    tables = [normal(2, 1, 33, dtype=BF16, seed=k) for k in range(1, 4)]
    outs, _ = fused_norm(
        x, kind="rms", eps=1e-6, modulations=[(tables[0], tables[1]), (None, tables[2])]
    )

    def original(x: Tensor, s: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        n = rms(x, None, 1e-6)
        return n * (1 + s) + b, n + c

    exact, plain = original(*doubles(x, *tables)), original(x, *tables)
    assert len(outs) == 2
    for got, e, p in zip(outs, exact, plain, strict=True):
        assert_accurate(got, e, p)


def test_add_rms_norm_reads_the_rounded_or_the_unrounded_sum() -> None:
    # 256 + 0.5 is 256 in bf16, so that the two readings differ by far more than a rounding.
    x, r = torch.full((1, 2), 256.0, dtype=BF16), torch.tensor([[0.5, 128.0]], dtype=BF16)
    rounded, total = add_rms_norm(x, r, None, 0.0, round_sum=True, out_dtype=FP32)
    unrounded, _ = add_rms_norm(x, r, None, 0.0, round_sum=False, out_dtype=FP32)
    assert total.tolist() == [[256.0, 384.0]]
    assert_accurate(rounded, rms(total.double(), None, 0.0), rms(total.float(), None, 0.0))
    s = x.float() + r.float()
    assert_accurate(unrounded, rms(s.double(), None, 0.0), rms(s, None, 0.0))
    assert not torch.equal(rounded, unrounded)


def test_the_sum_can_be_fp32_of_low_precision_inputs() -> None:
    x, r = normal(3, 10, dtype=BF16), normal(3, 10, dtype=BF16, seed=1)
    _, total = add_rms_norm(x, r, None, 1e-6, sum_dtype=FP32)
    assert torch.equal(total, x.float() + r.float())


def test_kind_none_gives_the_sum_alone() -> None:
    x, y, g = normal(3, 10), normal(3, 10, seed=1), normal(10, seed=2)
    outs, total = fused_norm(x, kind="none", branch=y, gate=g, sum_dtype=FP32)
    assert outs == [] and total is not None
    assert_accurate(total, x.double() + g.double() * y.double(), x + g * y)


def test_gate_inside_the_branch_norm_of_mochi() -> None:
    x, y, g = (
        normal(2, 3, 10, dtype=BF16),
        normal(2, 3, 10, dtype=BF16, seed=1),
        normal(2, 1, 10, seed=2),
    )

    def original(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return x + (rms(wide(y), None, 1e-6) * g.tanh()).to(x.dtype)

    _, total = fused_norm(x, kind="none", branch=y, gate=g.tanh(), branch_eps=1e-6, sum_dtype=BF16)
    assert total is not None
    assert_accurate(total, original(*doubles(x, y, g)), original(x, y, g))


def test_weight_offset_is_gemmas_one_plus_w() -> None:
    x, w = normal(3, 50, dtype=BF16), normal(50, dtype=BF16, seed=1) / 10

    def original(x: Tensor, w: Tensor) -> Tensor:
        return (rms(wide(x), None, 1e-6) * (1 + wide(w))).to(x.dtype)

    assert_accurate(
        rms_norm(x, w, 1e-6, weight_offset=1.0), original(*doubles(x, w)), original(x, w)
    )


def test_round_before_weight_rounds_twice() -> None:
    # fp16, because Triton's interpreter truncates to bf16 where the hardware rounds.
    x, w = normal(8, 50, dtype=FP16), normal(50, seed=1)
    got = rms_norm(x, w, 1e-6, round_before_weight=True, out_dtype=FP32)
    twice = rms(x.float(), None, 1e-6).to(FP16).float() * w
    # Bit-equality would need the same fp32 order of summation: values at a rounding boundary may go
    # either way.
    assert (got == twice).float().mean() > 0.98
    assert not torch.equal(got, rms_norm(x, w, 1e-6, out_dtype=FP32))


@pytest.mark.parametrize("weight_dtype", [FP32, FP16, BF16, torch.float64])
def test_weight_of_another_dtype(weight_dtype: torch.dtype) -> None:
    x, w = normal(3, 50, dtype=BF16), normal(50, dtype=weight_dtype, seed=1)
    original = (rms(x.float(), None, 1e-6) * w.float()).to(BF16)
    assert_accurate(rms_norm(x, w, 1e-6), rms(*doubles(x, w), 1e-6), original)


def test_bf16_in_fp32_out() -> None:
    x = normal(3, 50, dtype=BF16)
    got = rms_norm(x, None, 1e-6, out_dtype=FP32)
    assert_accurate(got, rms(x.double(), None, 1e-6), rms(x.float(), None, 1e-6))


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("width", [20, MAX_RESIDENT_WIDTH + 1])
def test_nan_and_inf_propagate_as_in_eager(width: int, bad: float, kind: str) -> None:
    x = normal(3, width)
    x[1, width // 2] = bad
    (got,), _ = fused_norm(x, kind=kind, eps=1e-6)  # type: ignore[arg-type]

    def original(x: Tensor) -> Tensor:
        return rms(x, None, 1e-6) if kind == "rms" else F.layer_norm(x, (width,), None, None, 1e-6)

    assert_accurate(got, original(x.double()), original(x))


@settings(max_examples=examples(25), deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 90),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([1e-12, 1.1920928955078125e-07, 1e-6, 1e-2]),
    affine=st.booleans(),
    step=st.integers(1, 3),
)
def test_rms_norm_of_any_shape(
    rows: int, width: int, dtype: torch.dtype, eps: float, affine: bool, step: int
) -> None:
    x = normal(rows * step, width + 1, dtype=dtype)[::step, 1:]
    w = normal(width, dtype=dtype, seed=1) if affine else None
    exact = rms(x.double(), None if w is None else w.double(), eps)
    assert_accurate(rms_norm(x, w, eps), exact, rms(x, w, eps))
