from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.aiter import qk_norm_rotary as adapter
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import assert_no_worse
from tests.doubles.aiter_double import ContractViolation, installed
from tests.suites import examples

EPS = 1e-6


def tables(tokens: int, entries: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(1.0, tokens + 1)[:, None] * torch.logspace(0, -3, entries)
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


def graph(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """diffusers' RMSNorm, then the rotation in float32."""
    normed = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)).to(
        x.dtype
    ) * weight
    return turned(normed.float(), cos, sin, interleaved).to(x.dtype)


def exact(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight.double()
    return turned(normed, cos.double(), sin.double(), interleaved)


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    a, b = pairs.unbind(-1)
    out = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return out.flatten(-2) if interleaved else out.transpose(-1, -2).flatten(-2)


def refusal(**arguments: Any) -> str | None:
    return adapter.refusal(adapter.Arguments(**arguments))


def run(**arguments: Any) -> tuple[Tensor, Tensor]:
    return adapter.qk_norm_rotary(adapter.Arguments(**arguments))


def call(**changed: Any) -> dict[str, Any]:
    """The arguments of a call that aiter takes, apart from what is changed."""
    cos, sin = tables(8, 32)
    taken = {
        "q": torch.ones(2, 8, 4, 64).half(),
        "k": torch.ones(2, 8, 2, 64).half(),
        "wq": torch.ones(64).half(),
        "wk": torch.ones(64).half(),
        "cos": cos,
        "sin": sin,
        "eps": EPS,
        "interleaved": True,
        "round_before_weight": True,
    }
    return {**taken, **changed}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "head_size"), [(1, 4, 4, 64), (2, 3, 1, 128), (1, 1, 2, 256)]
)
def test_qk_norm_rotary(
    batch: int, heads: int, kv_heads: int, head_size: int, interleaved: bool, dtype: torch.dtype
) -> None:
    q, k = (torch.randn(batch, 9, h, head_size).mul(3).to(dtype) for h in (heads, kv_heads))
    wq, wk = (torch.randn(head_size).to(dtype) for _ in range(2))
    cos, sin = tables(9, head_size // 2)
    with installed():
        out_q, out_k = run(
            q=q, k=k, wq=wq, wk=wk, cos=cos, sin=sin, eps=EPS, interleaved=interleaved,
            round_before_weight=True,
        )  # fmt: skip
    for out, x, weight in ((out_q, q, wq), (out_k, k, wk)):
        original = graph(x, weight, cos, sin, interleaved)
        assert_no_worse(out, original, exact(x, weight, cos, sin, interleaved))
        assert out.is_contiguous()


def test_tables_are_joined_in_float32() -> None:
    cos, sin = tables(5, 32)
    table = adapter.prepare_table(cos.bfloat16(), sin)
    assert table.dtype == torch.float32 and table.shape == (5, 64) and table.is_contiguous()
    assert torch.equal(table[:, 32:], sin[0, :, 0])
    assert torch.equal(table[:, :32], cos[0, :, 0].bfloat16().float())


def test_empty() -> None:
    empty = torch.empty(0, 8, 4, 64).half()
    with installed():
        out_q, out_k = run(**call(q=empty, k=empty))
    assert out_q.shape == out_k.shape == empty.shape


Q, W = torch.ones(2, 8, 4, 64).half(), torch.ones(64).half()
WIDE_COS, WIDE_SIN = tables(8, 64)

# What is changed about the call, and what the reason says; in each of them aiter itself comes to
# harm.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (call(q=Q.float(), k=Q.float(), wq=W.float(), wk=W.float()), "q is float32"),
    "k dtype": (call(k=Q.bfloat16()), "k is bfloat16 and q is float16"),
    "wq dtype": (call(wq=W.bfloat16()), "wq is bfloat16 and q is float16"),
    "wk dtype": (call(wk=W.float()), "wk is float32 and q is float16"),
    "k tokens": (call(k=Q[:, :4].contiguous()), "aiter goes by q's for both"),
    "k batch": (call(k=Q[:1]), "aiter goes by q's for both"),
    "head size": (
        call(q=torch.ones(2, 8, 4, 96).half(), k=torch.ones(2, 8, 4, 96).half()),
        "head size 96",
    ),
    "full-width weight": (call(wq=torch.ones(256).half()), "wq has shape [256]"),
    "weight strided": (call(wk=torch.ones(128).half()[::2]), "wk has stride 2"),
    "q strided": (call(q=torch.ones(2, 4, 8, 64).half().transpose(1, 2)), "q has strides"),
    "k sliced": (call(k=torch.ones(2, 8, 4, 128).half()[..., :64]), "k has strides"),
    "offset": (call(q=torch.ones(4097).half()[1:].view(2, 8, 4, 64)), "q begins at element 1"),
    "weight offset": (call(wq=torch.ones(65).half()[1:]), "wq begins at element 1"),
    "table width": (call(cos=WIDE_COS, sin=WIDE_SIN), "64 entries per token"),
    "short table": (
        call(cos=tables(7, 32)[0], sin=tables(7, 32)[1]),
        "cos has 7 rows for 8 tokens",
    ),
    "no heads": (call(k=Q[:, :, :0].contiguous()), "at least one of each"),
    "batch": (
        call(q=Q[:1, :1, :1].expand(65536, 1, 1, 64), k=Q[:1, :1, :1].expand(65536, 1, 1, 64)),
        "65535",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    arguments, text = REFUSED[case]
    with installed():
        assert text in (refusal(**arguments) or "")
        with pytest.raises(AiterContractError, match="fused_qk_norm_rope_1way was not called"):
            run(**arguments)


@pytest.mark.parametrize("case", REFUSED)
def test_the_double_comes_to_harm(case: str) -> None:
    a = REFUSED[case][0]
    q, k = a["q"], a["k"]
    with installed():
        from aiter.ops.fused_qk_norm_rope_cache_quant import fused_qk_norm_rope_1way

        with pytest.raises(ContractViolation):
            fused_qk_norm_rope_1way(
                *(
                    q,
                    k,
                    a["wq"],
                    a["wk"],
                    adapter.prepare_table(a["cos"], a["sin"]),
                    *q.shape[:3],
                    k.shape[2],
                ),
                *(q.shape[3], True, EPS, torch.empty(q.shape).to(q), torch.empty(k.shape).to(q)),
            )


def test_a_low_precision_table_harms_the_double() -> None:
    a = call()
    with installed():
        from aiter.ops.fused_qk_norm_rope_cache_quant import fused_qk_norm_rope_1way

        table = adapter.prepare_table(a["cos"], a["sin"]).half()
        with pytest.raises(ContractViolation, match="cos_sin"):
            fused_qk_norm_rope_1way(
                a["q"],
                a["k"],
                W,
                W,
                table,
                2,
                8,
                4,
                2,
                64,
                True,
                EPS,
                a["q"].clone(),
                a["k"].clone(),
            )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"round_before_weight": False}, "rounds twice"),
        ({"q": Q[0]}, "q has 3 dimensions"),
        ({"cos": WIDE_COS.double()}, "cos is float64"),
        ({"cos": call()["cos"].repeat(2, 1, 1, 1)}, "differs between 2 samples"),
        ({"cos": call()["cos"].repeat(1, 1, 4, 1)}, "differs between 4 heads"),
        ({"cos": call()["cos"][0, :, 0]}, "cos has 2 dimensions"),
        ({"sin": WIDE_SIN}, "and sin [1, 8, 1, 64]"),
    ],
)
def test_refused_before_there_is_a_call(changed: dict[str, Any], text: str) -> None:
    with installed():
        assert text in (refusal(**call(**changed)) or "")


def test_two_gibibytes_are_refused() -> None:
    from unittest import mock

    from rocm_passes.kernels.aiter import contract

    q = torch.empty(64, 2**14, 16, 64, device="meta").half()
    on_meta = {name: call()[name].to("meta") for name in ("wq", "wk")}
    cos, sin = (
        t.expand(1, 2**14, 1, 32).to("meta") for t in (call()["cos"][:, :1], call()["sin"][:, :1])
    )
    with installed(), mock.patch.object(contract, "DEVICE_TYPES", frozenset({"meta"})):
        assert "2.00 GiB" in (refusal(**call(q=q, k=q, cos=cos, sin=sin, **on_meta)) or "")
        assert refusal(**call(q=q[:63], k=q[:63], cos=cos, sin=sin, **on_meta)) is None


@pytest.mark.parametrize(
    ("version", "text"), [("0.1.12", "no fused_qk_norm"), ("0.1.15", "out of bounds")]
)
def test_old_versions_are_refused(version: str, text: str) -> None:
    with installed(version):
        assert text in (refusal(**call()) or "")


@pytest.mark.parametrize("version", ["0.1.17", "0.1.18", "0.1.20"])
def test_new_versions_are_taken(version: str) -> None:
    with installed(version):
        assert refusal(**call()) is None


def test_numerics_note() -> None:
    assert adapter.numerics_note(Q) is None
    assert "denormals" in (adapter.numerics_note(Q.bfloat16()) or "")


@settings(max_examples=examples(80), deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 4, 5, 0])] * 4),
    head_size=st.sampled_from([64, 128, 256, 64, 96]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16] * 2 + [torch.float32]),
    weight_dtype=st.sampled_from([None] * 6 + [torch.float32]),
    heads_first=st.sampled_from([False] * 4 + [True]),
    entries=st.sampled_from([1] * 5 + [2]),
    interleaved=st.booleans(),
    mode=st.sampled_from([True] * 5 + [False]),
    version=st.sampled_from(["0.1.17", "0.1.20", "0.1.18", "0.1.20", "0.1.15", "0.1.12"]),
)
def test_either_a_reason_or_the_right_answer(
    sizes: tuple[int, int, int, int],
    head_size: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    heads_first: bool,
    entries: int,
    interleaved: bool,
    mode: bool,
    version: str,
) -> None:
    batch, tokens, heads, kv_heads = sizes
    q, k = (torch.randn(batch, tokens, h, head_size).to(dtype) for h in (heads, kv_heads))
    if heads_first:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    wq, wk = (torch.randn(head_size).to(weight_dtype or dtype) for _ in range(2))
    cos, sin = tables(tokens, head_size // 2 * entries)
    arguments = {"q": q, "k": k, "wq": wq, "wk": wk, "cos": cos, "sin": sin, "eps": EPS}
    with installed(version):
        if refusal(**arguments, interleaved=interleaved, round_before_weight=mode) is not None:
            return
        outputs = run(**arguments, interleaved=interleaved, round_before_weight=mode)
    for out, x, weight in zip(outputs, (q, k), (wq, wk), strict=True):
        assert out.shape == x.shape
        if out.numel():
            original = graph(x, weight, cos, sin, interleaved)
            assert_no_worse(out, original, exact(x, weight, cos, sin, interleaved))
