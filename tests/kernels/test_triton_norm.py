"""Residual -> norm -> modulate over the last dimension, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.norms.norm_plan import (
    MAX_RESIDENT_WIDTH,
    MAX_WIDTH,
    NormTile,
    choose_tile,
)
from rocm_passes.kernels.triton.rows import RowBlocks, collapse
from tests.kernels.kernel_calls import fused_norm
from tests.kernels.norm_reference import assert_accurate, wide
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = [FP32, FP16, BF16]

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, **options: Any) -> Tensor:
    """RMSNorm alone."""
    outs, _ = fused_norm(x, kind="rms", eps=eps, weight=weight, **options)
    return outs[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and the sum itself."""
    options.setdefault("sum_dtype", x.dtype)
    outs, total = fused_norm(x, kind="rms", eps=eps, branch=residual, weight=weight, **options)
    assert total is not None
    return outs[0], total


def normal(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def doubles(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.double() for t in tensors)


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


def strided(name: str) -> Tensor:
    """[2, 5, 6, 16] tensors whose rows are contiguous and lie anywhere."""
    base = normal(2, 5, 3 * 6 * 16)
    match name:
        case "slice of a fused projection":
            return base[..., 96:192].unflatten(-1, (6, 16))
        case "heads before tokens":
            return normal(2, 6, 5, 16).transpose(1, 2)
        case "every second token":
            return normal(2, 10, 6, 16)[:, ::2]
        case "expanded batch":
            return normal(1, 5, 6, 16).expand(2, 5, 6, 16)
        case "rows not contiguous":
            return normal(2, 5, 16, 6).transpose(2, 3)
        case "all dims reversed":
            return normal(6, 5, 2, 16).permute(2, 1, 0, 3)
    raise ValueError(name)


LAYOUTS = [
    "slice of a fused projection",
    "heads before tokens",
    "every second token",
    "expanded batch",
    "rows not contiguous",
    "all dims reversed",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_head_norm_of_strided_views(layout: str) -> None:
    x, w = strided(layout), normal(16, seed=1)
    got = rms_norm(x, w, 1e-6)
    assert got.is_contiguous()
    assert_accurate(got, rms(*doubles(x, w), 1e-6), rms(x, w, 1e-6))


def test_operands_of_five_unlike_dims_are_copied() -> None:
    x = normal(2, 3, 2, 3, 4, 8)[:, :, :, :, ::2]
    scale = normal(2, 1, 2, 1, 2, 8, seed=1)
    (got,), _ = fused_norm(x, kind="rms", eps=1e-6, modulations=[(scale, None)])
    assert_accurate(
        got, rms(x.double(), None, 1e-6) * (1 + scale.double()), rms(x, None, 1e-6) * (1 + scale)
    )


def test_branch_broadcasts_over_leading_dims() -> None:
    x, y = normal(4, 16), normal(3, 1, 16, seed=1)
    got, total = add_rms_norm(x, y, None, 1e-6)
    assert total.shape == (3, 4, 16)
    assert_accurate(got, rms(x.double() + y.double(), None, 1e-6), rms(x + y, None, 1e-6))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (2, 0, 5)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    got, total = add_rms_norm(torch.empty(shape), torch.empty(shape), None, 1e-6)
    assert got.shape == total.shape == shape


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


# Refusals


def test_refuses_integers_and_fp64() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.int32"):
        rms_norm(torch.ones(2, 3, dtype=torch.int32), None, 1e-6)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        rms_norm(torch.ones(2, 3, dtype=torch.float64), None, 1e-6)


def test_refuses_a_branch_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"branch is torch\.float64"):
        add_rms_norm(normal(2, 3), normal(2, 3).double(), None, 1e-6)


def test_refuses_an_output_dtype_that_it_cannot_store() -> None:
    with pytest.raises(TypeError, match=r"output is torch\.float64"):
        rms_norm(normal(2, 3), None, 1e-6, out_dtype=torch.float64)


def test_refuses_an_integer_weight() -> None:
    with pytest.raises(TypeError, match=r"operand is torch\.int64"):
        rms_norm(normal(2, 3), torch.ones(3, dtype=torch.int64), 1e-6)


def test_refuses_a_0d_input() -> None:
    with pytest.raises(ValueError, match="0-d"):
        rms_norm(torch.tensor(1.0), None, 1e-6)


def test_refuses_rows_that_are_too_wide() -> None:
    with pytest.raises(ValueError, match="65537 elements"):
        rms_norm(torch.empty(0, MAX_WIDTH + 1), None, 1e-6)


def test_refuses_a_branch_of_another_width() -> None:
    with pytest.raises(ValueError, match="differ in the last dimension"):
        add_rms_norm(normal(2, 3), normal(2, 1), None, 1e-6)


def test_refuses_a_gate_without_a_branch() -> None:
    with pytest.raises(ValueError, match="need a branch"):
        fused_norm(normal(2, 3), kind="rms", gate=normal(3))


def test_refuses_a_branch_weight_without_the_branchs_norm() -> None:
    with pytest.raises(ValueError, match="needs branch_eps"):
        fused_norm(normal(2, 3), kind="rms", branch=normal(2, 3), branch_weight=normal(3))


def test_refuses_three_modulations() -> None:
    with pytest.raises(ValueError, match="3 modulations"):
        fused_norm(normal(2, 3), kind="rms", modulations=[(None, None)] * 3)


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind is 'batch'"):
        fused_norm(normal(2, 3), kind="batch")  # type: ignore[arg-type]


def test_refuses_kind_none_without_a_sum() -> None:
    with pytest.raises(ValueError, match="sum alone"):
        fused_norm(normal(2, 3), kind="none", branch=normal(2, 3))


def test_refuses_a_table_that_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        fused_norm(normal(2, 3), kind="rms", modulations=[(normal(4, 2, 3), None)])


# Numbering of rows, and tiles


def test_collapse_merges_what_all_operands_allow() -> None:
    contiguous, by_sample = (60, 20, 10), (3, 0, 0)
    index = collapse((2, 3, 2), [contiguous, by_sample])
    assert index is not None
    assert index.sizes == (2, 6, 1) and index.rank == 2
    assert index.strides == ((60, 10, 0), (3, 0, 0))
    assert index.constant_in_group(1) and not index.constant(1) and not index.constant_in_group(0)


def test_collapse_drops_dims_of_one_and_gives_up_beyond_three() -> None:
    index = collapse((1, 4, 1), [(99, 7, 99)])
    assert index is not None and index.sizes == (4, 1, 1) and index.strides == ((7, 0, 0),)
    assert collapse((2, 2, 2, 2), [(1, 10, 100, 1000)]) is None


def test_row_blocks_do_not_cross_groups() -> None:
    index = collapse((3, 10), [(100, 1), (1, 0)])
    assert index is not None
    assert RowBlocks.over(index, 4, grouped=True) == RowBlocks(
        inner=10, blocks_per_group=3, blocks=9
    )
    assert RowBlocks.over(index, 4, grouped=False) == RowBlocks(
        inner=30, blocks_per_group=8, blocks=8
    )


@pytest.mark.parametrize("width", [1, 64, 1536, 3072, 3840, 5120, 6144, 8192, 13824, MAX_WIDTH])
def test_tiles_waste_few_lanes(width: int) -> None:
    tile = choose_tile(width)
    covered = -(-width // tile.chunk) * tile.chunk
    assert covered <= width * 1.2
    assert tile.chunk & (tile.chunk - 1) == 0 and tile.rows & (tile.rows - 1) == 0
