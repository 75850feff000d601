from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.aiter import rms_norm as adapter
from rocm_passes.kernels.aiter.contract import AiterContractError
from tests.accuracy import assert_no_worse, ulp
from tests.doubles.aiter_double import VERSIONS, ContractViolation, installed
from tests.suites import examples

pytestmark = pytest.mark.pairwise

EPS = 1e-6
HALVES = (torch.float16, torch.bfloat16)


def graph(
    x: Tensor, weight: Tensor, round_before_weight: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What the graph computes: in float32 as the original does, in float64 for the exact answer."""
    norm = x.to(dtype) * torch.rsqrt(x.to(dtype).square().mean(-1, keepdim=True) + EPS)
    if dtype == torch.float64:
        return norm * weight.to(dtype)
    if round_before_weight:
        return norm.to(x.dtype) * weight
    return (norm * weight.to(dtype)).to(x.dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    return x, torch.randn(shape[-1:], generator=generator).to(dtype)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("round_before_weight", [False, True])
@pytest.mark.parametrize(
    "shape", [(5, 128), (2, 3, 4, 64), (1, 2560), (3, 8194), (3, 10000), (2, 8200)]
)
def test_rms_norm(
    shape: tuple[int, ...], round_before_weight: bool, dtype: torch.dtype, arch: str
) -> None:
    x, weight = inputs(shape, dtype)
    with installed(arch=arch):
        out = adapter.rms_norm(x, weight, EPS, round_before_weight=round_before_weight)
    exact = graph(x, weight, round_before_weight, torch.float64)
    assert_no_worse(out, graph(x, weight, round_before_weight), exact)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("round_before_weight", [False, True])
def test_without_truncation_it_is_bit_equal(dtype: torch.dtype, round_before_weight: bool) -> None:
    x, weight = inputs((64, 128), dtype)
    with installed(arch="gfx950"):
        out = adapter.rms_norm(x, weight, EPS, round_before_weight=round_before_weight)
    assert torch.equal(out, graph(x, weight, round_before_weight))


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((6, 64), (192, 1), 64),
        ((6, 64), (1, 6), 0),
        ((2, 3, 8, 64), (1536, 64, 192, 1), 0),
        ((4, 64), (128, 2), 0),
        ((5, 64), (0, 1), 0),
        ((5, 64), (65, 1), 1),
    ],
    ids=["row-strided", "transposed", "permuted", "every other", "expanded", "offset"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_strides(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, dtype: torch.dtype
) -> None:
    x = torch.randn(4096).to(dtype).as_strided(shape, stride, offset)
    weight = torch.randn(64).to(dtype)
    with installed(arch="gfx950"):
        out = adapter.rms_norm(x, weight, EPS, round_before_weight=False)
        dense = adapter.rms_norm(x.contiguous(), weight, EPS, round_before_weight=False)
        norm, total = adapter.add_rms_norm(x, x, weight, EPS, round_before_weight=False)
    assert torch.equal(out, dense) and out.is_contiguous()
    assert torch.equal(total, x + x) and total.is_contiguous() and norm.is_contiguous()


@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, False), (torch.bfloat16, True)])
def test_odd_rows_are_right_where_they_are_taken(dtype: torch.dtype, mode: bool) -> None:
    x, weight = inputs((5, 7), dtype)
    with installed(arch="gfx950"):
        out = adapter.rms_norm(x, weight, EPS, round_before_weight=mode)
    assert_no_worse(out, graph(x, weight, mode), graph(x, weight, mode, torch.float64))


def test_one_column_with_an_odd_stride() -> None:
    x = torch.arange(1.0, 9.0).as_strided((4, 1), (1, 5))
    with installed():
        out = adapter.rms_norm(x, torch.ones(1), EPS, round_before_weight=False)
    torch.testing.assert_close(out, torch.ones(4, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("round_before_weight", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 64), (3, 8320)])
def test_add_rms_norm(
    shape: tuple[int, ...], round_before_weight: bool, dtype: torch.dtype, arch: str
) -> None:
    x, weight = inputs(shape, dtype)
    residual = torch.randn(shape).to(dtype)
    with installed(arch=arch):
        out, total = adapter.add_rms_norm(
            x, residual, weight, EPS, round_before_weight=round_before_weight
        )
    assert_no_worse(total, x + residual, x.double() + residual.double())
    assert arch == "gfx942" or torch.equal(total, x + residual)
    exact = graph(x.double() + residual.double(), weight, round_before_weight, torch.float64)
    assert_no_worse(out, graph(x + residual, weight, round_before_weight), exact)


@pytest.mark.parametrize("version", ["0.1.12", "0.1.17", "0.1.18", "0.1.20"])
def test_the_keyword_keeps_its_meaning_in_every_version(version: str) -> None:
    x, weight = inputs((4, 64), torch.bfloat16)
    with installed(version, arch="gfx950"):
        plain, _ = adapter.add_rms_norm(x, x, weight, EPS, round_before_weight=False)
        if version >= "0.1.18":
            rounded, _ = adapter.add_rms_norm(x, x, weight, EPS, round_before_weight=True)
            assert torch.equal(rounded, graph(x + x, weight, True))
    assert torch.equal(plain, graph(x + x, weight, False))  # x + x is exact


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_empty(shape: tuple[int, ...]) -> None:
    x, weight = torch.empty(shape), torch.ones(64)
    with installed():
        assert adapter.rms_norm(x, weight, EPS, round_before_weight=True).shape == shape
        out, total = adapter.add_rms_norm(x, x, weight, EPS, round_before_weight=True)
    assert out.shape == total.shape == shape


X, W = torch.ones(4, 64).half(), torch.ones(64).half()

# x, weight, round_before_weight, version, what the reason says; in each of them aiter itself comes
# to harm.
REFUSED = {
    "dtype": (X.double(), W.double(), False, "0.1.20", "x is float64"),
    "integers": (X.short(), W.short(), False, "0.1.20", "x is int16"),
    "weight dtype": (X, W.bfloat16(), False, "0.1.20", "weight is bfloat16 and x is float16"),
    "weight float32": (X, W.float(), False, "0.1.20", "weight is float32 and x is float16"),
    "weight too short": (X, W[:32], False, "0.1.20", "shape [32]"),
    "weight strided": (X, torch.ones(128).half()[::2], False, "0.1.20", "stride 2"),
    "weight offset": (X, torch.ones(65).half()[1:], False, "0.1.20", "weight begins at element 1"),
    "weight 2-D": (X, W[None], False, "0.1.20", "shape [1, 64]"),
    "odd": (
        torch.ones(2, 769).half(),
        torch.ones(769).half(),
        False,
        "0.1.20",
        "hidden size 769 is odd",
    ),
    "wide": (
        torch.ones(2, 8194).half(),
        torch.ones(8194).half(),
        False,
        "0.1.17",
        "8194 is over 8192",
    ),
    "float32, old": (X.float(), W.float(), False, "0.1.17", "x is float32"),
    "hidden 0": (torch.ones(2, 0).half(), torch.ones(0).half(), False, "0.1.20", "hidden size 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    x, weight, mode, version, text = REFUSED[case]
    with installed(version):
        assert text in (adapter.refusal(x, weight, round_before_weight=mode) or "")
        assert text in (adapter.refusal(x, weight, x, round_before_weight=mode) or "")
        with pytest.raises(AiterContractError, match="rmsnorm2d_fwd was not called"):
            adapter.rms_norm(x, weight, EPS, round_before_weight=mode)
        with pytest.raises(AiterContractError, match="rmsnorm2d_fwd_with_add was not called"):
            adapter.add_rms_norm(x, x, weight, EPS, round_before_weight=mode)


@pytest.mark.parametrize("case", [case for case in REFUSED if REFUSED[case][3] == "0.1.20"])
def test_the_double_comes_to_harm(case: str) -> None:
    x, weight, mode, version, _ = REFUSED[case]
    with installed(version):
        from aiter.ops.rmsnorm import rmsnorm2d_fwd, rmsnorm2d_fwd_with_add

        # float64 goes to the kernel that checks in Python, and so raises an AssertionError of its
        # own.
        harm = AssertionError if case == "dtype" else ContractViolation
        with pytest.raises(harm):
            rmsnorm2d_fwd(x, weight, EPS, use_model_sensitive_rmsnorm=int(mode))
        with pytest.raises(harm):
            rmsnorm2d_fwd_with_add(torch.empty_like(x), x, x, torch.empty_like(x), weight, EPS)


def test_no_dimension_is_refused() -> None:
    with installed():
        reason = adapter.refusal(torch.tensor(1.0), torch.ones(1), round_before_weight=False)
    assert reason is not None and "no dimension" in reason


def test_rounding_before_the_weight_needs_0_1_18() -> None:
    with installed("0.1.17"):
        reason = adapter.refusal(X, W, round_before_weight=True)
    assert reason is not None and "0.1.18" in reason


def test_composable_kernel_only_is_refused() -> None:
    with installed("0.1.9"):
        reason = adapter.refusal(X, W, round_before_weight=False)
    assert reason is not None and "Composable Kernel" in reason


def test_a_residual_of_another_shape_is_refused() -> None:
    with installed():
        reason = adapter.refusal(X, W, X[:1], round_before_weight=False)
        assert reason is not None and "does not broadcast" in reason
        from aiter.ops.rmsnorm import rmsnorm2d_fwd_with_add

        with pytest.raises(ContractViolation):
            rmsnorm2d_fwd_with_add(torch.empty_like(X), X, X[:1], torch.empty_like(X), W, EPS)


def test_a_residual_of_another_dtype_is_refused() -> None:
    with installed():
        reason = adapter.refusal(X, W, X.bfloat16(), round_before_weight=False)
        assert reason is not None and "residual is bfloat16" in reason
        from aiter.ops.rmsnorm import rmsnorm2d_fwd_with_add

        with pytest.raises(ContractViolation):
            rmsnorm2d_fwd_with_add(
                torch.empty_like(X), X, X.bfloat16(), torch.empty_like(X), W, EPS
            )


@pytest.mark.parametrize("round_before_weight", [False, True])
def test_two_gibibytes_are_refused(round_before_weight: bool) -> None:
    x = torch.ones(64).half().expand(2**24, 64)
    with installed():
        reason = adapter.refusal(x, W, round_before_weight=round_before_weight)
        assert reason is not None and "2.00 GiB" in reason
        assert adapter.refusal(x[1:], W, round_before_weight=round_before_weight) is None


def test_far_rows_are_refused_and_harm_the_double() -> None:
    x = torch.empty(0).half().set_(torch.UntypedStorage(2**31 + 256), 0, (2, 64), (2**30, 1))
    with installed():
        reason = adapter.refusal(x, W, round_before_weight=False)
        assert reason is not None and "32-bit offsets" in reason
        from aiter.ops.rmsnorm import rmsnorm2d_fwd

        with pytest.raises(ContractViolation, match="int32"):
            rmsnorm2d_fwd(x, W, EPS)


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 3, 64).half(),
        torch.ones(64, 2).half().t(),
        torch.ones(0, 64).half(),
        torch.ones(257).half()[1:].view(4, 64),
        torch.ones(4, 65).half()[:, :64],
    ],
    ids=["3-D through the old one", "last stride", "empty", "odd offset", "odd row stride"],
)
def test_the_double_comes_to_harm_where_the_adapter_does_not(x: Tensor) -> None:
    weight = torch.ones(x.shape[-1]).half()
    with installed("0.1.17"):
        out = adapter.rms_norm(x, weight, EPS, round_before_weight=False)
        assert torch.equal(out, torch.nn.functional.rms_norm(x, x.shape[-1:], weight, EPS))
        from aiter.ops.rmsnorm import rmsnorm2d_fwd

        with pytest.raises(ContractViolation):
            rmsnorm2d_fwd(x, weight, EPS)


def test_permuted_input_fails_aiters_own_check() -> None:
    x, weight = torch.ones(2, 8, 3, 64).transpose(1, 2), torch.ones(64)
    with installed():
        from aiter.ops.rmsnorm import rmsnorm2d_fwd

        with pytest.raises(AssertionError, match="bad out"):
            rmsnorm2d_fwd(x, weight, EPS)


@pytest.mark.parametrize(
    ("dtype", "mode", "arch", "said"),
    [
        (torch.bfloat16, False, "gfx942", {"truncates", "ffast-math", "denormals"}),
        (
            torch.bfloat16,
            True,
            "gfx1100",
            {"truncates", "after the weight only", "ffast-math", "denormals"},
        ),
        (torch.bfloat16, True, "gfx950", {"denormals"}),
        (torch.bfloat16, False, "gfx950", {"ffast-math", "denormals"}),
        (torch.float16, False, "gfx942", {"ffast-math"}),
        (torch.float16, True, "gfx942", set()),
        (torch.float32, False, "gfx942", {"denormals"}),
    ],
)
def test_numerics_note(dtype: torch.dtype, mode: bool, arch: str, said: set[str]) -> None:
    x = torch.ones(2, 64, dtype=dtype)
    with installed(arch=arch):
        note = adapter.numerics_note(x, round_before_weight=mode, arch=arch) or ""
    words = ("truncates", "after the weight only", "ffast-math", "denormals")
    assert {word for word in words if word in note} == said
    assert (note == "") == (not said)


def test_numerics_note_of_the_unrounded_sum() -> None:
    half = torch.ones(2, 64).half()
    assert "before it is rounded to float16" in (
        adapter.numerics_note(half, add=True, round_before_weight=False, arch="gfx950") or ""
    )
    assert adapter.numerics_note(half, add=True, round_before_weight=True, arch="gfx950") is None
    wide = torch.ones(2, 10000).half()
    assert "only a part" in (
        adapter.numerics_note(wide, add=True, round_before_weight=False, arch="gfx950") or ""
    )


def test_truncating_twice_would_miss_the_bar() -> None:
    x, weight = inputs((256, 128), torch.bfloat16)
    exact = graph(x, weight, True, torch.float64)
    with installed(arch="gfx942"):
        from aiter.ops.rmsnorm import rmsnorm2d_fwd

        twice = rmsnorm2d_fwd(x, weight, EPS, use_model_sensitive_rmsnorm=1)
        once = adapter.rms_norm(x, weight, EPS, round_before_weight=True)
    units = [((out.double() - exact).abs() / ulp(exact, x.dtype)).max() for out in (twice, once)]
    assert units[0] > 2 and units[1] <= 1


def test_truncation_is_real() -> None:
    x, weight = inputs((64, 128), torch.bfloat16)
    with installed(arch="gfx942"):
        truncated = adapter.rms_norm(x, weight, EPS, round_before_weight=False)
    rounded = graph(x, weight, False)
    assert (truncated.abs() <= rounded.abs()).all()
    assert 0.4 < (truncated != rounded).float().mean() < 0.6


@settings(max_examples=examples(150), deadline=None)
@given(
    lead=st.lists(st.sampled_from([1, 2, 3, 3, 0]), max_size=3),
    hidden=st.sampled_from([2, 6, 8, 64, 130, 8192, 8200, 129, 8193, 1, 0]),
    dtype=st.sampled_from(
        [torch.float16, torch.bfloat16, torch.float32] * 3 + [torch.float64, torch.int16]
    ),
    weight_dtype=st.sampled_from([None] * 6 + [torch.float32]),
    step=st.sampled_from([1, 1, 2]),
    flipped=st.booleans(),
    mode=st.booleans(),
    add=st.booleans(),
    version=st.sampled_from(VERSIONS),
    arch=st.sampled_from(["gfx942", "gfx950"]),
)
def test_either_a_reason_or_the_right_answer(
    lead: list[int],
    hidden: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    step: int,
    flipped: bool,
    mode: bool,
    add: bool,
    version: str,
    arch: str,
) -> None:
    x = torch.randn(*lead, hidden * step).mul(4).to(dtype)[..., ::step]
    if flipped and x.dim() > 2:
        x = x.transpose(0, 1)
    weight = torch.randn(hidden).mul(4).to(weight_dtype or dtype)
    residual = torch.randn(x.shape).mul(4).to(dtype)
    with installed(version, arch):
        if add:
            if adapter.refusal(x, weight, residual, round_before_weight=mode) is not None:
                return
            out, total = adapter.add_rms_norm(x, residual, weight, EPS, round_before_weight=mode)
            assert arch == "gfx942" or torch.equal(total, x + residual)
            total = x + residual
        else:
            total = x
            if adapter.refusal(x, weight, round_before_weight=mode) is not None:
                return
            out = adapter.rms_norm(x, weight, EPS, round_before_weight=mode)
    if out.numel():
        source = x.double() + residual.double() if add else x
        exact = graph(source, weight, mode, torch.float64)
        assert_no_worse(out, graph(total, weight, mode), exact)
