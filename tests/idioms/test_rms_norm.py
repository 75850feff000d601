"""RMSNorm: every spelling found and computed within the accuracy bar, and where the norm begins and
ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rocm_passes.fx.provenance import short
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, draw, use_reference
from tests.idioms.rms_norm_spellings import (
    SPELLINGS,
    D,
    diffusers,
    exact,
    gemma,
    llama,
    mochi,
    t5,
    torch_norm,
)
from tests.rewriting import Rewritten, rewrite


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def norms_of(seen: Rewritten) -> list[str]:
    return [e.outcome for e in seen.sites if e.idiom == "rms_norm"]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_every_spelling(spelling: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    x, w = draw(2, 7, D, dtype=dtype), draw(D, dtype=dtype, seed=1)
    seen = rewrite(spelling, x, w)
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "rms_norm",
        "rewritten",
        {"rms_norm": 1},
    )
    assert torch.ops.aten.rsqrt.default not in seen.targets()
    assert site.parameters["eps"] == pytest.approx(1e-5 if spelling is mochi else 1e-6)
    assert_no_worse(seen.result, spelling(x, w), exact(spelling, x, w))


@pytest.mark.parametrize(
    ("spelling", "rounds", "offset"),
    [
        (torch_norm, None, 0.0),
        (diffusers, BF16, 0.0),
        (llama, BF16, 0.0),
        (t5, BF16, 0.0),
        (gemma, None, 1.0),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_parameters_read_off_the_graph(
    spelling: Callable[[Tensor, Tensor], Tensor], rounds: torch.dtype | None, offset: float
) -> None:
    site = rewrite(spelling, draw(4, D, dtype=BF16), draw(D, dtype=BF16)).only()
    assert site.parameters["rounds_before_weight"] == rounds
    assert site.parameters["weight_offset"] == offset
    assert site.parameters["size"] == D


def test_rounding_before_the_weight_is_reproduced() -> None:
    """Bit for bit: one rounding of the normalised value, one of the product."""
    x, w = draw(64, D, dtype=BF16), draw(D, dtype=BF16, seed=1)
    assert torch.equal(rewrite(diffusers, x, w).result, diffusers(x, w))
    assert not torch.equal(diffusers(x, w), torch_norm(x, w))


def test_fp32_weight_gives_fp32() -> None:
    x, w = draw(4, D, dtype=BF16), draw(D, dtype=F32)
    seen = rewrite(diffusers, x, w)
    assert norms_of(seen) == ["rewritten"]
    assert seen.result.dtype is F32
    assert_no_worse(seen.result, diffusers(x, w), exact(diffusers, x, w))


def test_broadcast_weight_and_strided_input() -> None:
    x, w = draw(2, 3, 2 * D, dtype=BF16)[..., ::2], draw(1, 1, D, dtype=BF16)
    seen = rewrite(diffusers, x, w)
    assert norms_of(seen) == ["rewritten"]
    assert_no_worse(seen.result, diffusers(x, w), exact(diffusers, x, w[0, 0]))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_any_rank(rank: int) -> None:
    x = draw(*([2] * (rank - 1)), D, dtype=F32)
    w = draw(D, dtype=F32)
    seen = rewrite(torch_norm, x, w)
    assert norms_of(seen) == ["rewritten"]
    torch.testing.assert_close(seen.result, torch_norm(x, w))


class DiffusersNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-3
        self.weight = nn.Parameter(draw(D, dtype=BF16))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + self.eps)).to(self.weight.dtype) * self.weight


def test_eps_is_a_tensor_under_dynamic_shapes() -> None:
    norm, x = DiffusersNorm(), draw(3, D, dtype=BF16)
    seen = rewrite(norm, x, dynamic=True)
    assert norms_of(seen) == ["rewritten"]
    assert str(seen.only().parameters["eps"]).startswith("tensor")
    assert torch.equal(seen.result, norm(x))


def test_location_and_module_are_the_users() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([DiffusersNorm()])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[0](x)

    site = rewrite(Model(), draw(3, D, dtype=BF16)).only()
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    path, _, line = site.location.rpartition(":")
    assert path == short(__file__)
    assert "torch.rsqrt(variance + self.eps)" in lines[int(line) - 1]
    assert site.module == "blocks.0"


# Where it begins and ends


def test_the_product_used_twice_ends_the_norm_there() -> None:
    """x * rstd is both multiplied by the weight and returned: only the weightless norm is taken."""

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * w, y

    x, w = draw(5, D, dtype=F32), draw(D, dtype=F32, seed=1)
    seen = rewrite(both, x, w)
    assert seen.only().parameters["weight"] is None
    torch.testing.assert_close(seen.result, both(x, w))


def test_a_narrowing_cast_is_not_looked_through() -> None:
    """The norm reads the rounded sum: its x is the bf16 value, not the fp32 one."""

    def rounded(x: Tensor, w: Tensor) -> Tensor:
        return torch_norm((x * 1.001).to(BF16), w)

    x, w = draw(64, D, dtype=F32), draw(D, dtype=BF16, seed=1)
    # Inductor's own patterns can drop the rounding from the graph before it comes to us (torch 2.11
    # does).
    seen = rewrite(rounded, x, w, options={"pattern_matcher": False})
    assert seen.only().parameters["x_dtype"] == BF16
    assert_no_worse(seen.result, rounded(x, w), exact(torch_norm, (x * 1.001).to(BF16), w))


def test_a_widening_after_the_norm_is_no_part_of_it() -> None:
    """It follows the norm's own rounding, and may begin a rotation in float32."""

    def widened(x: Tensor, w: Tensor) -> Tensor:
        return diffusers(x, w).float() * 1.001

    x, w = draw(64, D, dtype=BF16), draw(D, dtype=BF16, seed=1)
    seen = rewrite(widened, x, w)
    assert seen.only().parameters["out_dtype"] == BF16
    assert_no_worse(seen.result, widened(x, w), exact(diffusers, x, w) * 1.001)
