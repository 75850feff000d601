"""What depends on how aiter is compiled: its compiler, and builds without Composable Kernel."""

from __future__ import annotations

import pytest
import torch

from rocm_passes.kernels.aiter import contract, qk_norm_rotary, rms_norm, rotary
from tests.doubles.aiter_double import ContractViolation, installed

BF16 = torch.bfloat16
X, W = torch.ones(2, 64, dtype=BF16), torch.ones(64, dtype=BF16)
HEADS, TABLE = torch.ones(1, 4, 2, 64, dtype=BF16), torch.ones(1, 4, 1, 32)


@pytest.mark.parametrize(
    ("arch", "rocm", "truncates"),
    [
        ("gfx950", (7, 2), False),
        ("gfx950", (7, 0), False),
        ("gfx950", (6, 4), True),
        ("gfx1201", (6, 4), True),
        ("gfx1201", (7, 14), False),
        ("gfx942", (7, 2), True),
    ],
)
def test_hardware_rounds_from_clang_20_on(
    arch: str, rocm: tuple[int, int], truncates: bool
) -> None:
    """Values just below the next bfloat16: the note says what the double does."""
    x = torch.linspace(0.5, 3, 128).reshape(2, 64).to(BF16)
    with installed(arch=arch, rocm=rocm):
        found = rms_norm.rms_norm(x, W, 1e-6, round_before_weight=False)
        note = rms_norm.numerics_note(x, round_before_weight=False) or ""
    with installed(truncating=False):
        rounded = rms_norm.rms_norm(x, W, 1e-6, round_before_weight=False)
    assert ("truncates" in note) is truncates
    assert torch.equal(found, rounded) is not truncates


@pytest.mark.parametrize("build", ["7.2.53150-abc", "6.4", None])
def test_the_version_of_rocm(build: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", build)
    expected = {"7.2.53150-abc": (7, 2), "6.4": (6, 4), None: ()}
    assert contract.rocm_version() == expected[build]


def refusals() -> dict[str, str | None]:
    weights = (W, W)
    return {
        "rms_norm": rms_norm.refusal(X, W, round_before_weight=False),
        "add_rms_norm": rms_norm.refusal(X, W, X, round_before_weight=False),
        "rotary": rotary.refusal(HEADS, TABLE, TABLE, interleaved=True, rotated=64),
        "qk_norm_rotary": qk_norm_rotary.refusal(
            qk_norm_rotary.Arguments(
                *(HEADS, HEADS, *weights, TABLE, TABLE, 1e-6),
                interleaved=True,
                round_before_weight=True,
            )
        ),
    }


@pytest.mark.parametrize(
    ("arch", "value", "refused"),
    [
        ("gfx1100", "0", True),
        ("gfx1151", "0", True),
        ("gfx1100", "1", False),
        ("gfx942", "0", False),
        ("gfx1201", "0", False),
    ],
)
def test_without_composable_kernel_rdna_3_writes_nothing(
    arch: str, value: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_CK", value)
    with installed(arch=arch):
        for name, reason in refusals().items():
            dropped = f"ENABLE_CK=0: compiled so, aiter's kernel drops its stores on {arch}"
            assert reason == (dropped if refused else None), name
        if refused:
            from aiter.ops.rmsnorm import rmsnorm2d_fwd

            with pytest.raises(ContractViolation, match="dropped"):
                rmsnorm2d_fwd(X, W, 1e-6)
