"""RMSNorm and rotation of q and k in one kernel, against the formulas in float64, in the
interpreter.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rotary_reference import LAYOUTS, laid_out, rms_norm, rotate, tables

from tests.kernels.kernel_calls import qk_norm_rotary
from tests.suites import examples

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def norm_rotate(
    x: torch.Tensor, weight: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor,
    wide: torch.dtype,
    *, interleaved: bool, across_heads: bool, before: bool = False, after: bool = True,
    width: int | None = None,
) -> torch.Tensor:  # fmt: skip
    normed = rms_norm(x, weight, 1e-5, across_heads, before, after, wide)
    return rotate(normed, cos, sin, interleaved, width or x.shape[-1], wide)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(
    layout=st.sampled_from(LAYOUTS),
    interleaved=st.booleans(),
    across_heads=st.booleans(),
    weighted=st.booleans(),
    per_channel=st.booleans(),
    per_head=st.booleans(),
    channels=st.sampled_from([2, 6, 16, 40]),
    heads=st.sampled_from([1, 3, 5, 12]),
    rotated=st.sampled_from([1.0, 0.5]),
    dtype=st.sampled_from([FP32, FP16, BF16]),
)
def test_is_as_near_to_float64_as_the_formula_in_float32(
    layout: str, interleaved: bool, across_heads: bool, weighted: bool, per_channel: bool,
    per_head: bool,
    channels: int, heads: int, rotated: float, dtype: torch.dtype,
) -> None:  # fmt: skip
    width = max(2, int(channels * rotated) // 2 * 2)
    x = laid_out(torch.randn(2, 3, heads, channels).to(dtype), layout)
    cos, sin = tables(1, 3, heads if per_head else 1, width if per_channel else width // 2)
    weight = (
        torch.randn(heads * channels if across_heads else channels).to(dtype) if weighted else None
    )
    out, none = qk_norm_rotary(
        x, None, cos, sin, interleaved=interleaved, eps_q=1e-5, across_heads=across_heads,
        q_weight=weight,
        round_after_norm=False, rotary_dim=width, out_dtype=FP32,
    )  # fmt: skip
    assert none is None
    options = {
        "interleaved": interleaved,
        "across_heads": across_heads,
        "after": False,
        "width": width,
    }
    exact = norm_rotate(x, weight, cos, sin, FP64, **options)
    original = norm_rotate(x, weight, cos, sin, FP32, **options)
    last_place = torch.finfo(FP32).eps * exact.abs().amax(-1, keepdim=True)
    # A value of the norm that falls to the other neighbour, times cos and times sin: one last place
    # each.
    assert ((out - exact).abs() <= (original - exact).abs() + 2 * last_place).all()


@pytest.mark.parametrize("across_heads", [True, False])
@pytest.mark.parametrize(
    ("before", "after"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_rounds_where_the_graph_rounds(across_heads: bool, before: bool, after: bool) -> None:
    q, k = torch.randn(1, 4, 3, 16).half(), torch.randn(1, 4, 2, 16).half()
    cos, sin = tables(1, 4, 1, 8)
    wq, wk = (torch.randn(h * 16 if across_heads else 16).half() for h in (3, 2))
    out_q, out_k = qk_norm_rotary(
        q, k, cos, sin, interleaved=True, eps_q=1e-5, across_heads=across_heads, q_weight=wq,
        k_weight=wk,
        round_before_weight=before, round_after_norm=after, out_dtype=FP32,
    )  # fmt: skip
    for out, x, weight in ((out_q, q, wq), (out_k, k, wk)):
        options = {
            "interleaved": True,
            "across_heads": across_heads,
            "before": before,
            "after": after,
        }
        expected = norm_rotate(x, weight, cos, sin, FP32, **options)
        # Far below half precision's 1e-3: a rounding in another place would show.
        torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("across_heads", [True, False])
@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
def test_output_dtype_and_memory_order(across_heads: bool, dtype: torch.dtype) -> None:
    q = laid_out(torch.randn(2, 3, 5, 8).to(dtype), "head-major")
    k = laid_out(torch.randn(2, 3, 5, 8).to(dtype), "fused qkv")
    cos, sin = tables(1, 3, 1, 4)
    out_q, out_k = qk_norm_rotary(
        q, k, cos, sin, interleaved=False, eps_q=1e-5, across_heads=across_heads
    )
    assert out_k is not None and out_q.dtype == out_k.dtype == dtype
    assert out_q.transpose(1, 2).is_contiguous() and out_k.is_contiguous()
    for out, x in ((out_q, q), (out_k, k)):
        exact = norm_rotate(
            x, None, cos, sin, FP64, interleaved=False, across_heads=across_heads, after=False
        )
        # Two roundings to the dtype; the interpreter truncates to bf16, a whole last place each.
        bound = 3 * torch.finfo(dtype).eps * exact.abs().amax(-1, keepdim=True)
        assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("across_heads", [True, False])
def test_eps_of_q_and_of_k(across_heads: bool) -> None:
    q = k = torch.full((1, 2, 2, 4), 1e-3)
    cos, sin = torch.ones(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    options = {"interleaved": True, "across_heads": across_heads}
    same_q, same_k = qk_norm_rotary(q, k, cos, sin, eps_q=1e-6, **options)
    out_q, out_k = qk_norm_rotary(q, k, cos, sin, eps_q=1e-6, eps_k=3e-6, **options)
    assert same_k is not None and out_k is not None
    torch.testing.assert_close(same_q, torch.full_like(q, 0.5**0.5))
    assert torch.equal(same_q, same_k) and torch.equal(out_q, same_q)
    torch.testing.assert_close(out_k, torch.full_like(k, 0.5))


@pytest.mark.parametrize("across_heads", [True, False])
def test_only_one_of_the_weights_given(across_heads: bool) -> None:
    q, k, weight = (
        torch.randn(1, 2, 2, 4),
        torch.randn(1, 2, 2, 4),
        torch.randn(8 if across_heads else 4),
    )
    cos, sin = tables(1, 2, 1, 2)
    options = {"interleaved": True, "across_heads": across_heads}
    out_q, out_k = qk_norm_rotary(q, k, cos, sin, eps_q=1e-5, k_weight=weight, **options)
    torch.testing.assert_close(out_q, norm_rotate(q, None, cos, sin, FP32, **options))
    torch.testing.assert_close(out_k, norm_rotate(k, weight, cos, sin, FP32, **options))


@pytest.mark.parametrize("across_heads", [True, False])
def test_tokens_outside_the_tables_are_normalised_only(across_heads: bool) -> None:
    q = torch.randn(2, 6, 3, 8)
    cos, sin = tables(1, 3, 1, 4)
    out, _ = qk_norm_rotary(
        q, None, cos, sin, interleaved=True, eps_q=1e-5, across_heads=across_heads, seq_start=2
    )
    expected = rms_norm(q, None, 1e-5, across_heads, False, True, FP32)
    expected[:, 2:5] = rotate(expected[:, 2:5], cos, sin, True, 8, FP32)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("across_heads", [True, False])
def test_text_and_image_into_one_buffer(across_heads: bool) -> None:
    """Norm of each stream, cat(text, image), rotation: two calls write the two parts."""
    streams = [torch.randn(2, tokens, 3, 8) for tokens in (2, 5)]
    cos, sin = tables(1, 7, 1, 8)
    joint = torch.empty(2, 7, 3, 8)
    for x, rows in zip(streams, (slice(0, 2), slice(2, 7)), strict=True):
        qk_norm_rotary(
            x, None, cos[:, rows], sin[:, rows], interleaved=True, eps_q=1e-5,
            across_heads=across_heads,
            out_q=joint[:, rows],
        )  # fmt: skip
    normed = [rms_norm(x, None, 1e-5, across_heads, False, True, FP32) for x in streams]
    torch.testing.assert_close(joint, rotate(torch.cat(normed, dim=1), cos, sin, True, 8, FP32))


@pytest.mark.parametrize("across_heads", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e30])
def test_special_values_as_in_eager(across_heads: bool, value: float) -> None:
    q = torch.randn(1, 2, 2, 4)
    q[0, 0, 0, 1] = value
    if value == 0.0:
        q.zero_()
    cos, sin = tables(1, 2, 1, 2)
    out, _ = qk_norm_rotary(
        q, None, cos, sin, interleaved=True, eps_q=1e-5, across_heads=across_heads
    )
    expected = norm_rotate(q, None, cos, sin, FP32, interleaved=True, across_heads=across_heads)
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("across_heads", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (1, 0, 2, 8), (1, 3, 0, 8)])
def test_empty_inputs_give_empty_outputs(
    shape: tuple[int, int, int, int], across_heads: bool
) -> None:
    out, _ = qk_norm_rotary(
        torch.empty(shape), None, *tables(1, shape[1], 1, 4), interleaved=True, eps_q=1e-5,
        across_heads=across_heads,
    )  # fmt: skip
    assert out.shape == shape


Q = torch.zeros(1, 3, 2, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"q_weight": torch.zeros(16)}, ValueError, "q_weight .16,. must be 1-D of 8 elements"),
        (
            {"q_weight": torch.zeros(8), "across_heads": True},
            ValueError,
            "q_weight .8,. must be 1-D of 16",
        ),
        ({"k_weight": torch.zeros(2, 4)}, ValueError, "k_weight .2, 4. must be 1-D"),
        ({"k_weight": torch.zeros(8, dtype=FP64)}, TypeError, "k_weight is torch.float64"),
        ({"q_weight": torch.zeros(8, device="meta")}, ValueError, "q_weight lies on meta"),
    ],
)
def test_refuses(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        qk_norm_rotary(Q, Q, *tables(1, 3, 1, 4), interleaved=True, eps_q=1e-5, **options)  # type: ignore[arg-type]


def test_refuses_fp64_tables() -> None:
    with pytest.raises(TypeError, match=r"cos is torch\.float64"):
        qk_norm_rotary(Q, Q, *tables(1, 3, 1, 4, FP64), interleaved=True, eps_q=1e-5)


def test_refuses_a_row_that_registers_do_not_hold() -> None:
    wide = torch.zeros(1, 1, 512, 128)
    with pytest.raises(ValueError, match="exceeds 32768 channels"):
        qk_norm_rotary(
            wide, None, *tables(1, 1, 1, 64), interleaved=True, eps_q=1e-5, across_heads=True
        )
