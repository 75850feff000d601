"""The accuracy bar: against float64, no worse than the original graph, up to one unit in the last place."""

from __future__ import annotations

import torch
from torch import Tensor


def ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at each value of `exact`, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(exact.double().abs().clamp_min(info.tiny)))
    return torch.exp2(exponent) * info.eps


def assert_no_worse(out: Tensor, original: Tensor, exact: Tensor, units: float = 1.0) -> None:
    """Each element is as near `exact` as the worst of `original`, up to `units` in the last place."""
    assert out.dtype == original.dtype and out.shape == original.shape == exact.shape
    allowed = (original.double() - exact).abs().max() + units * ulp(exact, out.dtype)
    error = (out.double() - exact).abs()
    excess = (error / allowed).max().item()
    assert excess <= 1, f"error is {excess:.3f} times what is allowed"
