from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter import group_norm as adapter
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import ulp
from tests.doubles.aiter_double import ContractViolation, installed
from tests.suites import examples

pytestmark = pytest.mark.pairwise

EPS = 1e-5


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in (shape, shape[1:2], shape[1:2]))
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def check(out: Tensor, x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> None:
    """No worse than the original up to one unit, and up to the cancellation that numerics_note
    tells of.

    E[x²] - E[x]² has a relative error of some float32 epsilons times E[x²] / Var[x], whatever the
    dtype of x.
    """
    wide = x.double()
    exact = torch.group_norm(wide, groups, weight.double(), bias.double(), EPS)
    original = torch.group_norm(x, groups, weight, bias, EPS)
    grouped = wide.reshape(x.shape[0], groups, -1)
    condition = (grouped.square().mean(-1) / (grouped.var(-1, correction=0) + EPS)).max()
    amplified = (
        8 * torch.finfo(torch.float32).eps * condition * (1 + exact.abs().max() + bias.abs().max())
    )
    allowed = (original.double() - exact).abs().max() + ulp(exact, x.dtype) + amplified
    assert out.dtype == x.dtype and out.shape == x.shape
    excess = ((out.double() - exact).abs() / allowed).max().item()
    assert excess <= 1, f"error is {excess:.3f} times what is allowed"


@pytest.mark.parametrize("version", ["0.1.12", "0.1.18", "0.1.20"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(2, 8, 5, 7), (1, 32, 3, 4, 6), (3, 4), (2, 6, 9), (1, 8, 256, 256)]
)
def test_group_norm(shape: tuple[int, ...], dtype: torch.dtype, version: str) -> None:
    x, weight, bias = inputs(shape, dtype)
    with installed(version):
        out = adapter.group_norm(x, 2, weight, bias, EPS)
    check(out, x, 2, weight, bias)
    assert out.is_contiguous() and out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(0, 8, 4), (2, 8, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    with installed():
        assert (
            adapter.group_norm(torch.empty(shape), 2, torch.ones(8), torch.ones(8), EPS).shape
            == shape
        )


X, W = torch.ones(2, 8, 4, 4).half(), torch.ones(8).half()
# A group of 4 x 35721 elements, more than 15 blocks, at 35721 = 189 x 189 positions per channel.
STRADDLING = torch.ones(1, 8, 189, 189)

# x, groups, weight, bias, what the reason says; in each of them aiter itself comes to harm.
REFUSED: dict[str, tuple[Tensor, int, Tensor, Tensor, str]] = {
    "dtype": (X.double(), 2, W.double(), W.double(), "x is float64"),
    "weight dtype": (X, 2, W.bfloat16(), W, "weight is bfloat16 and x is float16"),
    "bias dtype": (X, 2, W, W.float(), "bias is float32 and x is float16"),
    "weight too short": (X, 2, W[:4], W, "weight has shape [4]"),
    "bias too short": (X, 2, W, W[:4], "bias has shape [4]"),
    "groups": (X, 3, W, W, "8 channels do not divide into 3 groups"),
    "no channels": (torch.ones(2, 0, 4), 1, torch.ones(0), torch.ones(0), "0 channels"),
    "grid": (torch.ones(32768, 2, 1), 2, torch.ones(2), torch.ones(2), "65535"),
    "straddling vectors": (STRADDLING, 2, torch.ones(8), torch.ones(8), "neighbouring channel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    x, groups, weight, bias, text = REFUSED[case]
    with installed():
        assert text in (adapter.refusal(x, groups, weight, bias) or "")
        with pytest.raises(AiterContractError, match="groupnorm_run was not called"):
            adapter.group_norm(x, groups, weight, bias, EPS)
        from aiter.ops.groupnorm import groupnorm_run

        with pytest.raises(ContractViolation):
            groupnorm_run(x, groups, weight, bias, EPS)


def test_a_missing_weight_or_bias_is_refused() -> None:
    with installed():
        assert "weight is missing" in (adapter.refusal(X, 2, None, W) or "")
        assert "bias is missing" in (adapter.refusal(X, 2, W, None) or "")


def test_a_vector_is_refused() -> None:
    with installed():
        assert "samples and channels" in (adapter.refusal(torch.ones(8), 2, torch.ones(8), W) or "")


@pytest.mark.parametrize(
    "x", [X.to(memory_format=torch.channels_last), X.transpose(2, 3)[:, :, 1:]]
)
def test_other_memory_formats_are_refused(x: Tensor) -> None:
    with installed():
        assert "memory format" in (adapter.refusal(x, 2, W, W) or "")


def test_no_groups_are_refused() -> None:
    with installed():
        assert "0 groups" in (adapter.refusal(X, 0, W, W) or "")
        from aiter.ops.groupnorm import groupnorm_run

        with pytest.raises(ZeroDivisionError):
            groupnorm_run(X, 0, W, W, EPS)


def test_32_bit_indices_are_refused() -> None:
    weight = torch.ones(2**16, device="meta").half()
    x = torch.empty(1, 2**16, 2**16, device="meta").half()
    with installed():
        with mock.patch.object(contract, "DEVICE_TYPES", frozenset({"meta"})):
            assert "2^32" in (adapter.refusal(x, 2, weight, weight) or "")
            assert adapter.refusal(x[:, :-2].contiguous(), 2, weight[2:], weight[2:]) is None
        from aiter.ops.groupnorm import groupnorm_run

        with pytest.raises(ContractViolation, match="uint32"):
            groupnorm_run(x, 2, weight, weight, EPS)


def test_version_0_1_9_has_none() -> None:
    with installed("0.1.9"):
        assert "no groupnorm_run" in (adapter.refusal(X, 2, W, W) or "")


def test_groups_just_below_the_vector_path_are_taken() -> None:
    x, weight, bias = inputs((1, 8, 175, 175), torch.float32)
    with installed():
        out = adapter.group_norm(x, 2, weight, bias, EPS)
    check(out, x, 2, weight, bias)


def test_numerics_note() -> None:
    assert "cancels" in (adapter.numerics_note(X) or "")
    assert "denormals" in (adapter.numerics_note(X.float()) or "")
    assert "denormals" not in (adapter.numerics_note(X) or "")


def test_the_cancellation_is_real() -> None:
    x = torch.randn(1, 8, 64, 64) + 1000
    weight, bias = torch.ones(8), torch.zeros(8)
    with installed():
        out = adapter.group_norm(x, 2, weight, bias, EPS)
    exact = F.group_norm(x.double(), 2, eps=EPS)
    assert (out - exact).abs().max() > 10 * (F.group_norm(x, 2, eps=EPS) - exact).abs().max()


@settings(max_examples=examples(100), deadline=None)
@given(
    shape=st.tuples(
        st.sampled_from([1, 2, 3, 0]),
        st.sampled_from([8, 4, 12, 1, 0]),
        st.sampled_from([5, 1, 2, 4, 0]),
        st.integers(1, 9),
    ),
    groups=st.sampled_from([1, 2, 4, 4, 3, 0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32] * 3 + [torch.float64]),
    weight_dtype=st.sampled_from([None] * 6 + [torch.float32]),
    channels_last=st.sampled_from([False] * 4 + [True]),
    version=st.sampled_from(["0.1.12", "0.1.18", "0.1.20", "0.1.9"]),
)
def test_either_a_reason_or_the_right_answer(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    channels_last: bool,
    version: str,
) -> None:
    x, weight, bias = inputs(shape, dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight = weight.to(weight_dtype or dtype)
    with installed(version):
        if adapter.refusal(x, groups, weight, bias) is not None:
            return
        out = adapter.group_norm(x, groups, weight, bias, EPS)
    assert out.shape == x.shape and out.is_contiguous()
    if x.numel():
        check(out, x, groups, weight, bias)


@pytest.mark.parametrize(
    ("elements", "samples", "reason"),
    [
        (2**32 - 2**24, 1, None),
        (2**32 - 2**24 + 4, 1, "32-bit loop index wraps"),
        (2**31, 2, "index ends at 2^32"),
    ],
)
def test_indices_of_32_bits(elements: int, samples: int, reason: str | None) -> None:
    """In a fake mode: such a tensor takes 8 GiB. The loop steps past its end before it stops."""
    with installed(), FakeTensorMode():
        x = torch.empty(samples, 4, elements // 4, dtype=torch.float16)
        weight = torch.empty(4, dtype=torch.float16)
        found = adapter.refusal(x, 1, weight, weight)
    assert found is None if reason is None else reason in (found or "")
