"""The ways in which eps guards the root of an RMSNorm, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rocm_passes.kernels.triton.norms.norm_plan import NormTile
from rocm_passes.ops.rms_norm import inverse_root
from tests.kernels.kernel_calls import fused_norm
from tests.kernels.norm_reference import assert_accurate, wide

D = 40
READ_TWICE = NormTile(chunk=16, rows=4, resident=False, num_warps=4)


def original(x: Tensor, w: Tensor, eps: float, kind: str) -> Tensor:
    squares = wide(x).square().mean(-1, keepdim=True)
    return (wide(x) * inverse_root(squares, eps, kind) * wide(w)).to(x.dtype)


@pytest.mark.parametrize("tile", [None, READ_TWICE], ids=["resident", "read twice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["add", "clamp", "after_root"])
def test_each_kind(kind: str, dtype: torch.dtype, tile: NormTile | None) -> None:
    """Rows far below eps, about it, and far above; a row of zeros; a row with a NaN."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.0, 1e-6, 1e-3, 3e-2, 1.0, 1e3])[:, None]
    x = (torch.randn(6, D, generator=generator) * sizes).to(dtype)
    w = torch.randn(D, generator=generator).to(dtype)
    (got,), _ = fused_norm(x, kind="rms", eps=1e-3, weight=w, eps_kind=kind, tile=tile)
    assert_accurate(got, original(x.double(), w.double(), 1e-3, kind), original(x, w, 1e-3, kind))
    x[2, 3] = math.nan
    (got,), _ = fused_norm(x, kind="rms", eps=1e-3, weight=w, eps_kind=kind, tile=tile)
    assert got[2].isnan().all() and not got[3].isnan().any()


def test_the_kinds_differ() -> None:
    """Else the test above could not tell them apart."""
    x, w = torch.full((1, D), 1e-3), torch.ones(D)
    given = {float(original(x, w, 1e-3, kind)[0, 0]) for kind in ("add", "clamp", "after_root")}
    assert len(given) == 3
