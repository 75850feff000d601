"""The accuracy bar of the norm kernels: a float64 reference, and errors in units in the
last place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assert_accurate(
    got: Tensor, exact: Tensor, original: Tensor, units: float = 1.0, terms: float = 0.0
) -> None:
    """`got` errs against `exact` (float64) by at most the original's largest error and `units` in
    the last place.

    terms: the size of terms that may cancel; a unit in the last place of them is allowed, too.
    NaN and infinities must stand where `exact` has them.
    """
    assert got.shape == exact.shape
    assert got.dtype == original.dtype
    finite = exact.isfinite()
    torch.testing.assert_close(
        got.double()[~finite], exact[~finite], equal_nan=True, rtol=0.0, atol=0.0
    )
    if not bool(finite.any()):
        return
    info = torch.finfo(got.dtype)
    got, exact, original = got.double()[finite], exact[finite], original.double()[finite]
    allowed = (original - exact).abs().max() + units * info.eps * exact.abs().clamp_min(info.tiny)
    allowed += info.eps * terms
    error = (got - exact).abs()
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"error {error[worst]:.3g}, allowed {allowed[worst]:.3g}, where {exact[worst]:.6g} is exact"
    )


def wide(t: Tensor) -> Tensor:
    """`t.float()`, but float64 stays: a formula written with it is its own reference."""
    return t if t.dtype == torch.float64 else t.float()
