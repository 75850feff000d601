from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.aiter import rotary as adapter
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import assert_no_worse
from tests.doubles.aiter_double import VERSIONS, ContractViolation, installed
from tests.suites import examples

pytestmark = pytest.mark.pairwise


def tables(tokens: int, entries: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    angles = torch.arange(1.0, tokens + 1)[:, None] * torch.logspace(0, -3, entries)
    return angles.cos()[None, :, None].to(dtype), angles.sin()[None, :, None].to(dtype)


def graph(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    rotated: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What the graph computes, channel by channel: in float32 as it does, or in float64,
    exactly.
    """
    out = x.to(dtype, copy=True)
    half = rotated // 2
    for pair in range(half):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        at_a, at_b = (pair, pair) if cos.shape[3] == half else (a, b)
        xa, xb = x[..., a].to(dtype), x[..., b].to(dtype)
        out[..., a] = xa * cos[..., at_a].to(dtype) - xb * sin[..., at_a].to(dtype)
        out[..., b] = xb * cos[..., at_b].to(dtype) + xa * sin[..., at_b].to(dtype)
    return out if dtype == torch.float64 else out.to(x.dtype)


def check(
    out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, rotated: int
) -> None:
    original = graph(x, cos, sin, interleaved, rotated)
    assert_no_worse(out, original, graph(x, cos, sin, interleaved, rotated, torch.float64))
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [None, 16, 48])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_rotary(
    batch: int, per_channel: bool, rotated: int | None, interleaved: bool, dtype: torch.dtype
) -> None:
    q, k = torch.randn(batch, 7, 3, 64).to(dtype), torch.randn(batch, 7, 2, 64).to(dtype)
    width = rotated or 64
    cos, sin = tables(7, width if per_channel else width // 2)
    with installed():
        alone = adapter.rotary(q, cos, sin, interleaved=interleaved, rotated=rotated)
        out_q, out_k = adapter.rotary_pair(q, k, cos, sin, interleaved=interleaved, rotated=rotated)
    check(out_q, q, cos, sin, interleaved, width)
    check(out_k, k, cos, sin, interleaved, width)
    assert torch.equal(alone, out_q)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 7, 64).transpose(1, 2),
        torch.randn(2, 7, 3, 3, 64)[:, :, 1],
        torch.randn(2, 7, 3, 128)[..., 64:],
        torch.randn(1, 7, 1, 64).expand(2, 7, 3, 64),
        torch.randn(1, 7, 1, 64).as_strided((1, 7, 1, 64), (3, 64, 5, 1)),
    ],
    ids=[
        "heads first",
        "slice of qkv",
        "half of the channels",
        "expanded",
        "odd strides of size 1",
    ],
)
def test_strides(x: Tensor) -> None:
    cos, sin = tables(7, 32)
    with installed():
        check(adapter.rotary(x, cos, sin, interleaved=True), x, cos, sin, True, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_of_any_dtype_and_layout(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 3, 64)
    cos, sin = tables(7, 32, dtype)
    strided = cos.repeat(1, 1, 1, 2)[..., ::2]
    assert not strided.is_contiguous()
    with installed():
        out = adapter.rotary(x, strided, sin.float(), interleaved=False)
    check(out, x, strided, sin.float(), False, 64)


def test_prepared_tables_are_not_copied_again() -> None:
    cos, sin = tables(7, 32, torch.bfloat16)
    prepared = adapter.prepare_tables(cos, sin)
    assert all(t.shape == (7, 1, 1, 32) and t.dtype == torch.float32 for t in prepared)
    again = adapter.prepare_tables(*(t.transpose(0, 1) for t in prepared))
    assert [t.data_ptr() for t in again] == [t.data_ptr() for t in prepared]


@pytest.mark.parametrize("shape", [(0, 7, 3, 64), (2, 0, 3, 64), (2, 7, 0, 64)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    cos, sin = tables(shape[1], 32)
    with installed():
        assert adapter.rotary(x, cos, sin, interleaved=True).shape == shape
        other = torch.randn(shape[0], shape[1], 2, 64)
        out, turned = adapter.rotary_pair(x, other, cos, sin, interleaved=True)
    assert out.shape == shape and turned.shape == other.shape
    if other.numel():
        check(turned, other, cos, sin, True, 64)


X = torch.ones(2, 8, 3, 64).half()
COS, SIN = tables(8, 32)
ODD = torch.ones(2, 8, 3, 66).half()

# x, cos, sin, rotated, what the reason says
REFUSED: dict[str, tuple[Tensor, Tensor, Tensor, int | None, str]] = {
    "dtype": (X.double(), COS, SIN, None, "x is float64"),
    "dimensions": (X[0], COS, SIN, None, "x has 3 dimensions"),
    "table dtype": (X, COS.double(), SIN, None, "cos is float64"),
    "table dimensions": (X, COS[0, :, 0], SIN[0, :, 0], None, "cos has 2 dimensions"),
    "table per sample": (
        X,
        COS.repeat(2, 1, 1, 1),
        SIN.repeat(2, 1, 1, 1),
        None,
        "differs between 2 samples",
    ),
    "table per head": (
        X,
        COS.repeat(1, 1, 3, 1),
        SIN.repeat(1, 1, 3, 1),
        None,
        "differs between 3 heads",
    ),
    "short table": (X, COS[:, :7], SIN[:, :7], None, "cos has 7 rows for 8 tokens"),
    "long table": (X, *tables(9, 32), None, "cos has 9 rows for 8 tokens"),
    "short sine": (
        X,
        COS,
        SIN[..., :16],
        None,
        "cos has shape [1, 8, 1, 32] and sin [1, 8, 1, 16]",
    ),
    "table width": (X, *tables(8, 24), None, "24 entries per token: 32 or 64"),
    "odd rotation": (X, *tables(8, 31), 31, "31 of 64 channels"),
    "no rotation": (X, *tables(8, 0), 0, "0 of 64 channels"),
    "past the head": (X, *tables(8, 64), 128, "128 of 64 channels"),
    "tail": (X, *tables(8, 31), 62, "2 of 64 channels are not rotated"),
    "last stride": (torch.ones(2, 8, 3, 128).half()[..., ::2], COS, SIN, None, "last stride 2"),
    "offset": (torch.ones(2, 8, 3, 68).half()[..., 2:66], COS, SIN, None, "from element 2"),
    "stride": (ODD[..., :64], COS, SIN, None, "multiples of 4"),
    "2 GiB": (
        torch.ones(64).half().as_strided((2**20, 8, 2, 64), (0, 0, 0, 1)),
        COS,
        SIN,
        None,
        "2.00 GiB",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    x, cos, sin, rotated, text = REFUSED[case]
    with installed():
        reason = adapter.refusal(x, cos, sin, interleaved=True, rotated=rotated)
        assert text in (reason or "")
        reason = adapter.pair_refusal(x, x, cos, sin, interleaved=True, rotated=rotated)
        assert text.removeprefix("x ") in (reason or "")
        with pytest.raises(AiterContractError, match="rope_cached_fwd was not called"):
            adapter.rotary(x, cos, sin, interleaved=True, rotated=rotated)
        with pytest.raises(AiterContractError, match="rope_cached_2c_fwd was not called"):
            adapter.rotary_pair(x, x, cos, sin, interleaved=True, rotated=rotated)


# What aiter itself is given, and comes to harm by: x [S, B, H, D], cos, sin, style, one entry per
# pair.
S = torch.ones(8, 2, 3, 64).half()
C = torch.ones(8, 1, 1, 32)
HARMFUL: dict[str, tuple[Tensor, Tensor, Tensor, int, bool]] = {
    "dtype": (S.double(), C, C, 1, True),
    "table dtype": (S, C.double(), C.double(), 1, True),
    "sine of another dtype": (S, C, C.half(), 1, True),
    "table dimensions": (S, C[:, 0, 0], C[:, 0, 0], 1, True),
    "table not contiguous": (S, torch.ones(8, 1, 1, 64)[..., ::2], C, 1, True),
    "table per sample": (S, C.repeat(1, 2, 1, 1), C.repeat(1, 2, 1, 1), 1, True),
    "short table": (S, C[:7], C[:7], 1, True),
    "past the head": (S, torch.ones(8, 1, 1, 64), torch.ones(8, 1, 1, 64), 1, True),
    "odd rotation": (S, torch.ones(8, 1, 1, 31), torch.ones(8, 1, 1, 31), 1, False),
    "tail": (S, C[..., :31].contiguous(), C[..., :31].contiguous(), 1, True),
    "rotate style": (S, C, C, 2, True),
    "last stride": (torch.ones(8, 2, 3, 128).half()[..., ::2], C, C, 1, True),
    "offset": (torch.ones(8, 2, 3, 68).half()[..., 2:66], C, C, 1, True),
    "empty": (S[:, :0], C, C, 1, True),
    "2 GiB": (torch.ones(64).half().as_strided((8, 2**20, 2, 64), (0, 0, 0, 1)), C, C, 1, True),
}


@pytest.mark.parametrize("case", HARMFUL)
def test_the_double_comes_to_harm(case: str) -> None:
    x, cos, sin, style, per_pair = HARMFUL[case]
    with installed():
        from aiter.ops.rope import rope_cached_2c_fwd, rope_cached_fwd

        with pytest.raises(ContractViolation):
            rope_cached_fwd(x, cos, sin, style, per_pair, False)
        with pytest.raises(ContractViolation):
            rope_cached_2c_fwd(x, x, cos, sin, style, per_pair, False)


def test_before_0_1_20_aiter_raises_where_it_aborts_now() -> None:
    with installed("0.1.18"):
        from aiter.ops.rope import rope_cached_fwd

        with pytest.raises(RuntimeError):
            rope_cached_fwd(S, C, C, 2, True, False)


@pytest.mark.parametrize(
    ("k", "text"),
    [
        (X.bfloat16(), "k is bfloat16 and q is float16"),
        (X[:1], "aiter goes by q's for both"),
        (X[:, :4], "aiter goes by q's for both"),
        (torch.ones(2, 8, 3, 128).half(), "aiter goes by q's for both"),
    ],
    ids=["dtype", "batch", "tokens", "head size"],
)
def test_unlike_pairs_are_refused_and_harm_the_double(k: Tensor, text: str) -> None:
    with installed():
        assert text in (adapter.pair_refusal(X, k, COS, SIN, interleaved=True) or "")
        from aiter.ops.rope import rope_cached_2c_fwd

        with pytest.raises(ContractViolation):
            rope_cached_2c_fwd(
                X.transpose(0, 1),
                k.transpose(0, 1),
                *adapter.prepare_tables(COS, SIN),
                1,
                True,
                False,
            )


def test_a_tail_of_two_is_right_for_half_split() -> None:
    x = torch.randn(1, 8, 2, 64)
    cos, sin = tables(8, 31)
    with installed():
        check(adapter.rotary(x, cos, sin, interleaved=False, rotated=62), x, cos, sin, False, 62)


def test_numerics_note() -> None:
    assert adapter.numerics_note(X) is None
    assert "denormals" in (adapter.numerics_note(X.bfloat16()) or "")


@settings(max_examples=examples(150), deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 5, 0])] * 3),
    channels=st.sampled_from([4, 8, 12, 32, 32, 30, 6, 0]),
    rotated=st.sampled_from([None] * 5 + [2, 4, 8, 16, 28, 30, 31, 34, 0]),
    per_channel=st.booleans(),
    interleaved=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32] * 3 + [torch.float64]),
    table_dtype=st.sampled_from([torch.float32, torch.bfloat16] * 3 + [torch.float64]),
    heads_first=st.booleans(),
    padding=st.sampled_from([0, 0, 0, 4, 4, 2]),
    kv_heads=st.one_of(st.none(), st.integers(0, 3)),
    version=st.sampled_from(VERSIONS),
)
def test_either_a_reason_or_the_right_answer(
    sizes: tuple[int, int, int],
    channels: int,
    rotated: int | None,
    per_channel: bool,
    interleaved: bool,
    dtype: torch.dtype,
    table_dtype: torch.dtype,
    heads_first: bool,
    padding: int,
    kv_heads: int | None,
    version: str,
) -> None:
    batch, tokens, heads = sizes
    shape = (batch, heads, tokens) if heads_first else (batch, tokens, heads)
    x = torch.randn(*shape, channels + padding).to(dtype)[..., padding:]
    x = x.transpose(1, 2) if heads_first else x
    width = channels if rotated is None else rotated
    cos, sin = tables(tokens, width if per_channel else width // 2, table_dtype)
    options = {"interleaved": interleaved, "rotated": rotated}
    with installed(version):
        if kv_heads is None:
            if adapter.refusal(x, cos, sin, **options) is not None:
                return
            outputs = [(x, adapter.rotary(x, cos, sin, **options))]
        else:
            k = torch.randn(batch, tokens, kv_heads, channels).to(dtype)
            if adapter.pair_refusal(x, k, cos, sin, **options) is not None:
                return
            outputs = list(zip((x, k), adapter.rotary_pair(x, k, cos, sin, **options), strict=True))
    for source, out in outputs:
        assert out.shape == source.shape
        if out.numel():
            check(out, source, cos, sin, interleaved, width)
