"""What the tests of the norm idioms share: drawn tensors, float64 twins, and one call through the
backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.accuracy import assert_no_worse
from tests.rewriting import Rewritten, rewrite

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NORMS = ("rms_norm", "layer_norm", "group_norm", "channel_norm")
CHAINS = ("residual_norm_modulate", "residual_norm", "norm_modulate", "norm_residual")


def draw(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(x: Tensor) -> Tensor:
    """`x.float()`, but float64 stays: a model function is then its own reference."""
    return x if x.dtype is F64 else x.float()


def narrow(x: Tensor, like: Tensor) -> Tensor:
    return x.type_as(like)


def use_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching is tested with the operators' references; the kernels have tests of their own."""
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)


def listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def check(fn: Callable[..., Any], *args: Tensor, units: float = 1.0, **given: Any) -> Rewritten:
    """Rewrite, and hold every result to the accuracy bar: `fn` on float64 arguments is exact."""
    seen = rewrite(fn, *args, **given)
    with torch.no_grad():
        original = listed(fn(*args))
        exact = listed(fn(*(a.double() for a in args)))
    for ours, eager, true in zip(listed(seen.result), original, exact, strict=True):
        assert_no_worse(ours, eager, true, units=units)
    return seen


def outcomes(seen: Rewritten) -> list[tuple[str, str]]:
    return [(e.idiom, e.outcome) for e in seen.sites]


def covered(seen: Rewritten) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in seen.sites:
        for name, count in entry.covers.items():
            total[name] = total.get(name, 0) + count
    return total
