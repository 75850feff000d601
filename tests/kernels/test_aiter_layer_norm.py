from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.aiter import layer_norm as adapter
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import assert_no_worse
from tests.doubles.aiter_double import VERSIONS, ContractViolation, installed
from tests.suites import examples

pytestmark = pytest.mark.pairwise

EPS = 1e-6


def check(out: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    shape = x.shape[-1:]
    wide = [None if t is None else t.double() for t in (weight, bias)]
    exact = F.layer_norm(x.double(), shape, *wide, EPS)
    assert_no_worse(out, F.layer_norm(x, shape, weight, bias, EPS), exact)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 769), (96,), (0, 8)])
def test_layer_norm(shape: tuple[int, ...], affine: tuple[bool, bool], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    weight, bias = (torch.randn(shape[-1]).to(dtype) if given else None for given in affine)
    with installed():
        out = adapter.layer_norm(x, weight, bias, EPS)
    if x.numel():
        check(out, x, weight, bias)
    assert out.shape == x.shape


@pytest.mark.parametrize(
    "x",
    [torch.randn(64, 6).half().t(), torch.randn(2, 6, 3, 64).half().transpose(1, 2)],
    ids=["transposed", "permuted"],
)
def test_strides(x: Tensor) -> None:
    weight = torch.randn(64).half()
    with installed():
        check(adapter.layer_norm(x, weight, weight, EPS), x, weight, weight)
        from aiter.ops.norm import layernorm2d_fwd

        with pytest.raises(ContractViolation):
            layernorm2d_fwd(x, weight, weight, EPS)


X, W = torch.ones(4, 64).half(), torch.ones(64).half()
REFUSED = {
    "weight dtype": (X, W.bfloat16(), W, "gfx942", "weight is bfloat16 and x is float16"),
    "bias dtype": (X, W, W.float(), "gfx942", "bias is float32 and x is float16"),
    "weight too short": (X, W[:32], W, "gfx942", "weight has shape [32]"),
    "bias strided": (X, W, torch.ones(128).half()[::2], "gfx942", "bias has stride 2"),
    "hidden 0": (X[:, :0], W[:0], W[:0], "gfx942", "hidden size 0"),
    "RDNA": (X, W, W, "gfx1100", "runs on gfx9 only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    x, weight, bias, arch, text = REFUSED[case]
    with installed(arch=arch):
        assert text in (adapter.refusal(x, weight, bias) or "")
        with pytest.raises(AiterContractError, match="layernorm2d_fwd was not called"):
            adapter.layer_norm(x, weight, bias, EPS)
        from aiter.ops.norm import layernorm2d_fwd

        with pytest.raises(ContractViolation):
            layernorm2d_fwd(x, weight, bias, EPS)


def test_float32_is_refused() -> None:
    with installed():
        assert "x is float32" in (adapter.refusal(X.float(), W.float(), W.float()) or "")
        from aiter.ops.norm import layernorm2d_fwd

        with pytest.raises(RuntimeError, match="fp16 and bf16"):
            layernorm2d_fwd(X.float(), W.float(), W.float(), EPS)


def test_no_dimension_is_refused() -> None:
    with installed():
        assert "no dimension" in (adapter.refusal(torch.tensor(1.0).half(), None, None) or "")


def test_two_gibibytes_are_refused_and_harm_the_double() -> None:
    x = torch.ones(64).half().expand(2**24, 64)
    with installed():
        assert "2.00 GiB" in (adapter.refusal(x, W, W) or "")
        from aiter.ops.norm import layernorm2d_fwd

        with pytest.raises(ContractViolation, match="int32"):
            layernorm2d_fwd(x, W, W, EPS)


def test_numerics_note() -> None:
    assert "Composable Kernel" in (adapter.numerics_note(X) or "")
    assert "denormals" in (adapter.numerics_note(X.bfloat16()) or "")


@settings(max_examples=examples(80), deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=3),
    hidden=st.sampled_from([0, 1, 2, 7, 64]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    bias_dtype=st.sampled_from([None, None, torch.float16]),
    affine=st.booleans(),
    flipped=st.booleans(),
    version=st.sampled_from(VERSIONS),
    arch=st.sampled_from(["gfx942", "gfx1100"]),
)
def test_either_a_reason_or_the_right_answer(
    lead: list[int],
    hidden: int,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    affine: bool,
    flipped: bool,
    version: str,
    arch: str,
) -> None:
    x = torch.randn(*lead, hidden).to(dtype)
    if flipped and x.dim() > 1:
        x = x.transpose(0, -1)
    weight = torch.randn(x.shape[-1]).to(dtype) if affine else None
    bias = torch.randn(x.shape[-1]).to(bias_dtype or dtype)
    with installed(version, arch):
        if adapter.refusal(x, weight, bias) is not None:
            return
        out = adapter.layer_norm(x, weight, bias, EPS)
    assert out.shape == x.shape
    if x.numel():
        check(out, x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 769), (0, 8)])
def test_with_a_residual(
    shape: tuple[int, ...], affine: tuple[bool, bool], dtype: torch.dtype
) -> None:
    x, residual = torch.randn(2, *shape).to(dtype)
    weight, bias = (torch.randn(shape[-1]).to(dtype) if given else None for given in affine)
    with installed():
        out, total = adapter.add_layer_norm(x, residual, weight, bias, EPS)
    assert out.shape == total.shape == x.shape and out.is_contiguous() and total.is_contiguous()
    if x.numel():
        wide = [None if t is None else t.double() for t in (weight, bias)]
        exact = x.double() + residual.double()
        normed = F.layer_norm(x + residual, shape[-1:], weight, bias, EPS)
        assert_no_worse(total, x + residual, exact)
        assert_no_worse(out, normed, F.layer_norm(exact, shape[-1:], *wide, EPS))


def test_with_a_strided_residual() -> None:
    x, residual = torch.randn(4, 64).half(), torch.randn(64, 4).half().t()
    with installed():
        _, total = adapter.add_layer_norm(x, residual, None, None, EPS)
    assert torch.equal(total, x + residual)


@pytest.mark.parametrize(
    ("residual", "reason"),
    [
        (X[:2], "residual has shape [2, 64] and x [4, 64]"),
        (X.bfloat16(), "residual is bfloat16 and x is float16"),
    ],
)
def test_a_residual_is_refused(residual: Tensor, reason: str) -> None:
    with installed():
        assert reason in (adapter.refusal(X, W, W, residual) or "")
        with pytest.raises(AiterContractError, match="layernorm2d_fwd_with_add was not called"):
            adapter.add_layer_norm(X, residual, W, W, EPS)


def test_without_composable_kernel_there_is_no_layer_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENABLE_CK", "0")
    with installed():
        assert "ENABLE_CK=0" in (adapter.refusal(X, W, W) or "")
        from aiter.ops.norm import layernorm2d_fwd

        with pytest.raises(RuntimeError, match="no sources"):
            layernorm2d_fwd(X, W, W, EPS)
