"""The ways in which eps guards the root of an RMSNorm, against float64."""

from __future__ import annotations

import json
import math
import re
import sys

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import inverse_rms
from rocm_passes.kernels.triton.norms.norm_plan import NormTile
from rocm_passes.ops.rms_norm import inverse_root
from tests import forked
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-62, -64, -66, -70])
def test_rows_whose_mean_of_squares_is_subnormal(power: int, dtype: torch.dtype) -> None:
    """Without an eps nothing guards the root."""
    x = torch.ldexp(torch.ones(3, D), torch.tensor(power)).to(dtype)
    (got,), _ = fused_norm(x, kind="rms", eps=0.0)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), torch.ones(3, D).double(), rtol=1e-2, atol=0)


#: 2^64, as fp32.
SCALE = "0x5f800000"
ROOT = """
import json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rocm_passes.kernels.triton.common import inverse_rms
from tests.kernels.test_triton_norm_eps import root
found = {}
for arch in ("gfx942", "gfx1201"):
    for eps in (0.0, 1e-6):
        source = ASTSource(fn=root, signature={"x": "*fp32", "y": "*fp32", "EPS": "constexpr"},
                           constexprs={"EPS": eps})
        wave = 64 if arch.startswith("gfx9") else 32
        built = triton.compile(source, target=GPUTarget("hip", arch, wave))
        found[f"{arch} {eps}"] = built.asm["amdgcn"]
json.dump(found, sys.stdout)
"""


@triton.jit
def root(x, y, EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 64)
    tl.store(y + at, inverse_rms(tl.load(x + at), 64, EPS, tl.bfloat16, "add"))


def test_amd_s_rsqrt_is_used_where_eps_keeps_its_argument_normal() -> None:
    """The instruction flushes a subnormal argument, whatever the mode of denormals."""
    done = forked.run([sys.executable, "-c", ROOT], env=forked.without_interpreter())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Triton 3.6 makes its exact root of that instruction: the argument is scaled by 2^64.
    bare = {
        name: bool(re.search(r"\bv_rsq_f32", code)) and SCALE not in code
        for name, code in found.items()
    }
    assert bare == {name: name.endswith("1e-06") for name in bare} and len(bare) == 4
