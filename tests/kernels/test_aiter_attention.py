"""aiter's attention behind its contract: what it takes is as exact as torch's, what it does not is
refused before it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.kernels.aiter import attention as adapter
from rocm_passes.kernels.aiter import attention_contract, contract, installation
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import assert_no_worse
from tests.doubles import aiter_attention
from tests.doubles.aiter_double import VERSIONS, ContractViolation, installed

BF16 = torch.bfloat16
WITH_IT = [version for version in VERSIONS if version != "0.1.9"]


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    attention_contract._LOADED.clear()
    aiter_attention.calls.clear()
    yield
    attention_contract._LOADED.clear()


def operands(
    queries: int = 130, keys: int = 130, heads: int = 2, key_heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """As a model has them: [B, S, H, D] in memory."""
    torch.manual_seed(0)
    sizes = ((queries, heads), (keys, key_heads), (keys, key_heads))
    q, k, v = (torch.randn(1, s, h, 128).to(BF16).transpose(1, 2) for s, h in sizes)
    return q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    wide = (t.double() for t in (q, k, v))
    return F.scaled_dot_product_attention(*wide, **how)


@pytest.mark.parametrize("version", WITH_IT)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_as_exact_as_torch(version: str, arch: str) -> None:
    q, k, v = operands(140, 150)
    with installed(version, arch):
        out = adapter.attention(q, k, v, scale=128**-0.5, causal=False)
    assert_no_worse(out, F.scaled_dot_product_attention(q, k, v), exact(q, k, v))
    assert out.transpose(1, 2).is_contiguous()
    assert aiter_attention.calls == [
        {"how_v3_bf16_cvt": 0, "causal": False, "softmax_scale": 128**-0.5}
    ]


def test_rounding_is_to_the_nearest_even_on_gfx942_only_where_it_is_asked_for() -> None:
    """Towards 0, the weights lose on average a quarter of a unit of bfloat16 (2^-9) each."""
    q, k, v = operands(256, 256)
    v = v.abs()
    with installed(arch="gfx942"):
        ours = adapter.attention(q, k, v, scale=0.01, causal=False)
        from aiter.ops.mha import flash_attn_func

        rows = (t.transpose(1, 2) for t in (q, k, v))
        truncated = flash_attn_func(*rows, softmax_scale=0.01, how_v3_bf16_cvt=2).transpose(1, 2)
    right = exact(q, k, v, scale=0.01)
    bias = ((ours - right) / right).mean(), ((truncated - right) / right).mean()
    assert abs(bias[0]) < 2e-4 and bias[1] < -1e-3, bias


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_and_causal(key_heads: int, causal: bool) -> None:
    q, k, v = operands(heads=6, key_heads=key_heads)
    how = {"is_causal": causal, "enable_gqa": True}
    with installed():
        out = adapter.attention(q, k, v, scale=128**-0.5, causal=causal)
    assert_no_worse(out, F.scaled_dot_product_attention(q, k, v, **how), exact(q, k, v, **how))


def test_operands_that_aiter_cannot_read_as_they_lie_are_copied() -> None:
    q, k, v = operands(heads=3, key_heads=3)
    with installed():
        plain = adapter.attention(q, k, v, scale=0.1, causal=False)
        assert torch.equal(adapter.attention(*lying(q, k, v), scale=0.1, causal=False), plain)
        one = k[:, :1].expand(k.shape), v[:, :1].expand(v.shape)
        repeated = adapter.attention(q, *one, scale=0.1, causal=False)
        copied = adapter.attention(q, *(t.contiguous() for t in one), scale=0.1, causal=False)
    assert torch.equal(repeated, copied)


def lying(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """[B, H, S, D] and [B, H, D, S] in memory, and rows that begin between vectors."""
    between = torch.zeros(*v.shape[:3], 132, dtype=v.dtype)[..., 3:131].copy_(v)
    return q.contiguous(), k.transpose(2, 3).contiguous().transpose(2, 3), between


def test_an_empty_result() -> None:
    q, k, v = operands()
    with installed():
        out = adapter.attention(q[:0], k[:0], v[:0], scale=0.1, causal=False)
    assert out.shape == (0, 2, 130, 128) and aiter_attention.calls == []


def refused(q: Tensor, k: Tensor, v: Tensor, reason: str, **how: Any) -> None:
    given: dict[str, Any] = {"scale": 128**-0.5, "causal": False, **how}
    arch = given.pop("arch", "gfx942")
    with installed(arch=arch):
        assert reason in (adapter.refusal(q, k, v, **given) or "")
        with pytest.raises(AiterContractError, match="flash_attn_func was not called"):
            adapter.attention(q, k, v, **given)
    assert aiter_attention.calls == []


@pytest.mark.parametrize("arch", ["gfx1100", "gfx1151", "gfx1201"])
def test_refused_on_other_architectures(arch: str) -> None:
    refused(*operands(), f"for gfx942 and gfx950, and this is {arch}", arch=arch)


def test_refused_for_few_queries() -> None:
    refused(*operands(queries=128), "128 queries: for 128 or fewer aiter takes a CK kernel")


@pytest.mark.parametrize("size", [40, 64, 96, 192, 256, 384, 512])
def test_refused_for_other_head_sizes(size: int) -> None:
    q, k, v = (torch.randn(1, 2, 130, size, dtype=BF16) for _ in range(3))
    refused(q, k, v, f"q has heads of {size}")


def test_refused_for_a_narrower_v() -> None:
    q, k, v = operands()
    refused(q, k, v[..., :64], "v has heads of 64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_refused_for_other_dtypes(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in operands())
    refused(q, k, v, f"q is {str(dtype)[6:]}: aiter takes bfloat16 here")
    refused(operands()[0], k, operands()[2], f"k is {str(dtype)[6:]}")


def test_refused_where_causal_masks_differ() -> None:
    refused(*operands(140, 130), "causal with 140 queries and 130 keys", causal=True)


def test_refused_for_sizes_that_do_not_fit_together() -> None:
    q, k, v = operands()
    refused(q, k[:, :, :120], v, "k has shape [1, 2, 120, 128] and v [1, 2, 130, 128]")
    refused(q.expand(2, -1, -1, -1), k, v, "q, k and v have 2, 1 and 1 batches")
    refused(*operands(heads=3, key_heads=2), "3 query heads are no multiple of 2 key heads")
    refused(q, k[:, :, :0], v[:, :, :0], "there are no keys")
    refused(q[0], k[0], v[0], "q has 3 dimensions")


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_refused_for_a_scale_that_is_not_positive(scale: float) -> None:
    refused(*operands(), f"the scale is {scale}", scale=scale)


def test_refused_beyond_32_bit_offsets() -> None:
    q = torch.empty(1, 2**23, 1, 128, dtype=BF16, device="meta").transpose(1, 2)
    with installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "DEVICE_TYPES", frozenset({"meta"}))
        small = q[:, :, : 2**22]
        assert adapter.refusal(small, small, small, scale=0.1, causal=False) is None
        reason = adapter.refusal(q, small, small, scale=0.1, causal=False)
        assert reason == "q reaches over 2.00 GiB: aiter's 32-bit offsets end at 2 GiB"


def test_refused_where_aiter_goes_by_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands()
    with installed():
        by_index = {0: "gfx950"}
        monkeypatch.setattr(
            contract, "architecture", lambda device: by_index.get(device.index, "gfx942")
        )
        reason = adapter.refusal(q, k, v, scale=0.1, causal=False)
    assert reason == "the first GPU is gfx950 and this one gfx942: aiter goes by the first"


def test_refused_where_aiter_would_take_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENABLE_CK", "0")
    refused(*operands(), "ENABLE_CK=0: aiter takes Triton kernels")


def test_refused_where_the_version_has_other_kernels() -> None:
    q, k, v = operands()
    with installed("0.1.9"):
        assert "flash_attn_func" not in installation.find().features
        reason = adapter.refusal(q, k, v, scale=0.1, causal=False)
    assert reason == "aiter 0.1.9 has no flash_attn_func of the signature that is known here"


def test_refused_under_a_fake_mode() -> None:
    q, k, v = operands()
    raises = pytest.raises(AiterContractError, match="a FakeTensorMode is active")
    with installed(), FakeTensorMode(allow_non_fake_inputs=True), raises:
        adapter.attention(q, k, v, scale=0.1, causal=False)


def test_the_first_call_is_not_within_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands()
    with installed():
        monkeypatch.setattr(attention_contract, "capturing", lambda: True)
        with pytest.raises(AiterContractError, match="not loaded yet, and a graph is being"):
            adapter.attention(q, k, v, scale=0.1, causal=False)
        monkeypatch.setattr(attention_contract, "capturing", lambda: False)
        adapter.attention(q, k, v, scale=0.1, causal=False)
        monkeypatch.setattr(attention_contract, "capturing", lambda: True)
        adapter.attention(q, k, v, scale=0.1, causal=False)
        with pytest.raises(AiterContractError, match="not loaded yet"):
            adapter.attention(q, k, v, scale=0.1, causal=True)


def test_the_double_sees_what_is_not_refused() -> None:
    """Each harm that the contract keeps away is one that the double raises at."""
    q, k, v = operands()
    with installed():
        from aiter.ops.mha import flash_attn_func

        rows = [t.transpose(1, 2) for t in (q, k, v)]
        for wrong in (
            [rows[0], rows[1].half(), rows[2]],
            [rows[0][..., :64], rows[1][..., :64], rows[2][..., :64]],
            [rows[0][:, :64], *rows[1:]],
            [rows[0], *(t[:, :, :1].expand(t.shape) for t in rows[1:])],
            [rows[0][:0], *rows[1:]],
            [rows[0].detach().requires_grad_(), *rows[1:]],
        ):
            with pytest.raises(ContractViolation):
                flash_attn_func(*wrong, softmax_scale=0.1)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 1)])
def test_in_8_bits_the_error_is_the_one_that_is_said(arch: str, heads: int, key_heads: int) -> None:
    q, k, v = operands(512, 512, heads, key_heads)
    with installed(arch=arch):
        out = adapter.attention_fp8(q, k, v, scale=128**-0.5, causal=False)
    right = exact(q, k, v, enable_gqa=True)
    error = (out.double() - right).square().mean().sqrt() / right.square().mean().sqrt()
    assert 0.8 * adapter.FP8_ERROR < error < 1.2 * adapter.FP8_ERROR
    assert out.dtype is BF16 and out.transpose(1, 2).is_contiguous()


def test_in_8_bits_of_zeros_and_of_large_values() -> None:
    q, k, v = operands(160, 160)
    with installed():
        zeros = adapter.attention_fp8(q, k, v * 0, scale=0.1, causal=False)
        large = adapter.attention_fp8(q, k, v * 2.0**100, scale=128**-0.5, causal=False)
    assert torch.equal(zeros, torch.zeros_like(zeros))
    assert large.isfinite().all() and float(large.abs().max()) > 2.0**95


def test_in_8_bits_refused() -> None:
    how: dict[str, Any] = {"scale": 0.1, "causal": False}
    q, k, v = operands(heads=3, key_heads=1)
    with installed():
        assert "3 query heads read one key head" in (adapter.fp8_refusal(q, k, v, **how) or "")
        few = operands(queries=100)
        assert "100 queries" in (adapter.fp8_refusal(*few, **how) or "")
        with pytest.raises(AiterContractError):
            adapter.attention_fp8(q, k, v, **how)
    with installed("0.1.9"):
        reason = adapter.fp8_refusal(*operands(), **how)
        assert reason is not None and "has no flash_attn_fp8_pertensor_func" in reason
    with installed(arch="gfx1201"):
        assert "this is gfx1201" in (adapter.fp8_refusal(*operands(), **how) or "")
