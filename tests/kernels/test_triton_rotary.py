"""The rotary kernel against the formula in float32 (in the interpreter bit for bit) and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rotary_reference import LAYOUTS, assert_is_the_formula, laid_out, rotate, tables

from tests.kernels.kernel_calls import rotary, rotary_pair
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(
    layout=st.sampled_from(LAYOUTS),
    interleaved=st.booleans(),
    per_channel=st.booleans(),
    per_head=st.booleans(),
    per_batch=st.booleans(),
    channels=st.sampled_from([2, 6, 16, 40, 72]),
    heads=st.sampled_from([1, 3, 5]),
    rotated=st.sampled_from([1.0, 0.5]),
    dtype=st.sampled_from([FP32, FP16, BF16]),
    table_dtype=st.sampled_from([FP32, BF16]),
    conjugate=st.booleans(),
)
def test_is_the_formula_in_float32(
    layout: str, interleaved: bool, per_channel: bool, per_head: bool, per_batch: bool,
    channels: int, heads: int, rotated: float, dtype: torch.dtype, table_dtype: torch.dtype,
    conjugate: bool,
) -> None:  # fmt: skip
    batch, tokens = 2, 3
    width = max(2, int(channels * rotated) // 2 * 2)
    x = laid_out(torch.randn(batch, tokens, heads, channels).to(dtype), layout)
    cos, sin = tables(
        batch if per_batch else 1,
        tokens,
        heads if per_head else 1,
        width if per_channel else width // 2,
        table_dtype,
    )
    out = rotary(
        x, cos, sin, interleaved=interleaved, rotary_dim=width, conjugate=conjugate, out_dtype=FP32
    )
    assert out.dtype == FP32
    assert_is_the_formula(out, x, cos, -sin if conjugate else sin, interleaved, width)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rounds_once_on_store(interleaved: bool, dtype: torch.dtype) -> None:
    x = torch.randn(1, 5, 3, 24).to(dtype)
    cos, sin = tables(1, 5, 1, 12)
    out = rotary(x, cos, sin, interleaved=interleaved)
    assert out.dtype == dtype
    exact = rotate(x, cos, sin, interleaved, 24, torch.float64)
    if dtype == BF16:  # the interpreter truncates on the way to bf16, a GPU rounds
        assert ((out.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
    else:
        assert_is_the_formula(out, x, cos, sin, interleaved, 24)


def test_the_allowance_for_a_gpu_is_for_one_fused_multiply_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What leaves out one product's rounding passes; one more unit, or a copy that is changed, does
    not.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    x = torch.randn(1, 64, 3, 20)
    cos, sin = tables(1, 64, 1, 8)
    turned = rotate(x, cos, sin, True, 16, FP32)
    rounded = tuple((x[..., 1:16:2] * s).double() for s in (sin, cos))
    fused = turned.clone()
    fused[..., 0:16:2] = (x[..., 0:16:2].double() * cos.double() - rounded[0]).float()
    fused[..., 1:16:2] = (x[..., 0:16:2].double() * sin.double() + rounded[1]).float()
    assert not torch.equal(fused, turned)
    assert_is_the_formula(fused, x, cos, sin, True, 16)
    half = fused.half()
    assert_is_the_formula(half, x, cos, sin, True, 16)
    for at, by in ((0, 3e-6), (17, 1e-7)):
        wrong = fused.clone()
        wrong[0, 0, 0, at] += by * wrong.abs().max()
        with pytest.raises(AssertionError, match="fused multiply-adds"):
            assert_is_the_formula(wrong, x, cos, sin, True, 16)


@pytest.mark.parametrize("layout", ["contiguous", "head-major", "fused qkv"])
def test_output_is_dense_in_the_memory_order_of_the_input(layout: str) -> None:
    x = laid_out(torch.randn(2, 3, 4, 8), layout)
    out = rotary(x, *tables(1, 3, 1, 4), interleaved=True)
    assert out.transpose(1, 2).is_contiguous() if layout == "head-major" else out.is_contiguous()


@pytest.mark.parametrize("step", [2, 3])
def test_strided_and_complex_table_views(step: int) -> None:
    x = torch.randn(1, 4, 2, 16)
    cos, sin = tables(1, 4, 1, 8 * step)
    strided = cos[..., 0::step], sin[..., step - 1 :: step]
    assert_is_the_formula(rotary(x, *strided, interleaved=True), x, *strided, True, 16)
    freqs = torch.randn(4, 8, dtype=torch.complex64)
    parts = torch.view_as_real(freqs)[None, :, None]
    rotated = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * freqs[:, None]
    torch.testing.assert_close(
        rotary(x, parts[..., 0], parts[..., 1], interleaved=True),
        torch.view_as_real(rotated).flatten(3),
    )


def test_tables_of_unlike_and_of_zero_strides() -> None:
    x = torch.randn(2, 4, 2, 16)
    cos, sin = tables(1, 4, 1, 8)
    unlike = torch.cat([sin, sin], dim=-1)[..., :8]
    assert_is_the_formula(rotary(x, cos, unlike, interleaved=False), x, cos, sin, False, 16)
    expanded = cos.expand(2, 4, 2, 8), sin.expand(2, 4, 2, 8)
    assert_is_the_formula(rotary(x, *expanded, interleaved=False), x, cos, sin, False, 16)


def test_the_conjugate_rotation_undoes_the_rotation() -> None:
    x, theta = torch.randn(1, 4, 3, 16), torch.randn(1, 4, 1, 8)
    there = rotary(x, theta.cos(), theta.sin(), interleaved=False)
    back = rotary(there, theta.cos(), theta.sin(), interleaved=False, conjugate=True)
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_tokens_outside_the_tables_are_copied(start: int) -> None:
    x = torch.randn(2, 7, 3, 12)
    x[:, 6] = float("inf")
    x[:, 6, :, 0] = float("nan")
    cos, sin = tables(1, 2, 1, 6)
    out = rotary(x, cos, sin, interleaved=True, seq_start=start)
    inside = slice(start, start + 2)
    assert_is_the_formula(out[:, inside], x[:, inside], cos, sin, True, 12)
    out[:, inside] = x[:, inside]
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("interleaved", [True, False])
def test_channels_past_the_rotary_width_are_copied_whatever_they_hold(interleaved: bool) -> None:
    x = torch.randn(1, 2, 1, 10)
    x[..., 6:] = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    out = rotary(x, *tables(1, 2, 1, 3), interleaved=interleaved, rotary_dim=6)
    assert torch.equal(out[..., 6:].view(torch.int32), x[..., 6:].view(torch.int32))


def test_an_odd_head_size_is_fine_if_the_rotary_width_is_even() -> None:
    x = torch.randn(1, 2, 3, 7)
    cos, sin = tables(1, 2, 1, 2)
    assert_is_the_formula(
        rotary(x, cos, sin, interleaved=False, rotary_dim=4), x, cos, sin, False, 4
    )


@pytest.mark.parametrize("interleaved", [True, False])
def test_pair_with_grouped_queries_and_unlike_layouts(interleaved: bool) -> None:
    q, k = (
        laid_out(torch.randn(2, 3, 6, 16), "head-major"),
        laid_out(torch.randn(2, 3, 2, 16), "fused qkv"),
    )
    cos, sin = tables(2, 3, 1, 16)
    out_q, out_k = rotary_pair(q, k, cos, sin, interleaved=interleaved)
    assert_is_the_formula(out_q, q, cos, sin, interleaved, 16)
    assert_is_the_formula(out_k, k, cos, sin, interleaved, 16)


def test_writes_into_slices_of_a_joint_buffer_and_nowhere_else() -> None:
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 3, 2, 8)
    cos, sin = tables(1, 3, 1, 4)
    joint_q, joint_k = torch.full((1, 5, 2, 8), 9.0), torch.full((1, 5, 2, 8), 9.0)
    result = rotary_pair(
        q, k, cos, sin, interleaved=True, out_q=joint_q[:, 2:], out_k=joint_k[:, :3]
    )
    assert result[0].data_ptr() == joint_q[:, 2:].data_ptr()
    assert_is_the_formula(joint_q[:, 2:], q, cos, sin, True, 8)
    assert_is_the_formula(joint_k[:, :3], k, cos, sin, True, 8)
    assert (joint_q[:, :2] == 9.0).all() and (joint_k[:, 3:] == 9.0).all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (1, 0, 2, 8), (1, 3, 0, 8)])
def test_empty_inputs_give_empty_outputs(shape: tuple[int, int, int, int]) -> None:
    out = rotary(torch.empty(shape), *tables(1, shape[1], 1, 4), interleaved=True)
    assert out.shape == shape


def test_empty_tables_copy_everything() -> None:
    x = torch.randn(1, 3, 2, 8)
    assert torch.equal(rotary(x, *tables(1, 0, 1, 4), interleaved=True, seq_start=1), x)


X = torch.zeros(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("x", "table_shape", "table_dtype", "options", "error", "message"),
    [
        (X, (1, 3, 1, 4), torch.float64, {}, TypeError, "cos is torch.float64"),
        (X, (1, 3, 1, 4), torch.complex64, {}, TypeError, "cos is torch.complex64"),
        (X.double(), (1, 3, 1, 4), FP32, {}, TypeError, "q is torch.float64"),
        (X[0], (1, 3, 1, 4), FP32, {}, ValueError, "q must be 4-D"),
        (X, (3, 4), FP32, {}, ValueError, "cos must be 4-D"),
        (X, (3, 3, 1, 4), FP32, {}, ValueError, "table batch 3"),
        (X, (1, 3, 2, 4), FP32, {}, ValueError, "table head count 2"),
        (X, (1, 3, 1, 3), FP32, {}, ValueError, "table width 3"),
        (X, (1, 2, 1, 4), FP32, {}, ValueError, "give seq_start"),
        (X, (1, 2, 1, 4), FP32, {"seq_start": 2}, ValueError, "lie outside"),
        (X, (1, 2, 1, 4), FP32, {"seq_start": -1}, ValueError, "lie outside"),
        (X, (1, 3, 1, 4), FP32, {"rotary_dim": 3}, ValueError, "rotary width 3"),
        (X, (1, 3, 1, 4), FP32, {"rotary_dim": 10}, ValueError, "rotary width 10"),
        (X, (1, 3, 1, 4), FP32, {"out_dtype": torch.float64}, TypeError, "float64"),
        (X, (1, 3, 1, 4), FP32, {"out": X[:1].clone()}, ValueError, "does not fit"),
        (X, (1, 3, 1, 4), FP32, {"out": X.half(), "out_dtype": FP32}, ValueError, "out_dtype asks"),
        (X, (1, 3, 1, 4), FP32, {"out": X.double()}, TypeError, "out is torch.float64"),
        (X, (1, 3, 1, 4), FP32, {"out": laid_out(X, "channel-strided")}, ValueError, "unit stride"),
    ],
)
def test_refuses(
    x: torch.Tensor, table_shape: tuple[int, ...], table_dtype: torch.dtype, options: dict[str,
    object],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    table = torch.zeros(table_shape, dtype=table_dtype)
    with pytest.raises(error, match=message):
        rotary(x, table, table, interleaved=True, **options)  # type: ignore[arg-type]


def test_refuses_tables_that_differ_in_shape() -> None:
    with pytest.raises(ValueError, match="must agree"):
        rotary(X, torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 8), interleaved=True)


def test_refuses_a_pair_that_differs_in_more_than_heads() -> None:
    with pytest.raises(ValueError, match="head count only"):
        rotary_pair(X, X[:, :2], *tables(1, 3, 1, 4), interleaved=True)
