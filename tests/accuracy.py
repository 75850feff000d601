"""The accuracy bar: error against float64 no worse than the original's, up to one unit in the last
place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype` at each value of x (float64)."""
    info = torch.finfo(dtype)
    magnitude = x.abs().clamp_min(info.smallest_normal)
    return torch.exp2(torch.floor(torch.log2(magnitude))) * info.eps


def assert_no_worse(ours: Tensor, original: Tensor, exact: Tensor, units: float = 1.0) -> None:
    """ours, original: results in the output dtype. exact: the same in float64.

    Elementwise: |ours - exact| <= max |original - exact| over the tensor, plus `units` ulp at that
    value.
    """
    assert ours.dtype == original.dtype, (ours.dtype, original.dtype)
    assert ours.shape == exact.shape, (ours.shape, exact.shape)
    error = (ours.double() - exact).abs()
    allowed = (original.double() - exact).abs().max() + units * ulp(exact, ours.dtype)
    worst = (error - allowed).max().item() if error.numel() else -1.0
    assert worst <= 0, f"error exceeds the original's by {worst:.3g} beyond one ulp"
    assert bool((ours.isnan() == exact.isnan()).all())
