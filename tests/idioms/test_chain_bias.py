"""RMSNorms with a bias inside the chains: the bias goes with the norm, or the norm stands alone
with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.idioms.norm_cases import (
    BF16,
    CHAINS,
    F16,
    F32,
    check,
    covered,
    draw,
    outcomes,
    use_reference,
    wide,
)
from tests.rewriting import Rewritten, rewrite

B, S, D = 2, 7, 48


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def diffusers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """It rounds before the weight, before the bias and behind it."""
    y = (x * torch.rsqrt(wide(x).pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    return y * w + b


def gemma(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    f = wide(x)
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + wide(w))).to(
        x.dtype
    ) + b


def once_rounded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    f = wide(x)
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * wide(w) + wide(b)).to(x.dtype)


NORMS = [diffusers, gemma, once_rounded]
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def stream(dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    return draw(B, S, D, dtype=dtype), draw(B, S, D, dtype=dtype, seed=1)


def affine(dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    """weight, bias"""
    return draw(D, dtype=dtype, seed=2), draw(D, dtype=dtype, seed=3)


def tables(count: int, dtype: torch.dtype = BF16) -> list[Tensor]:
    return [draw(B, 1, D, dtype=dtype, seed=10 + i) * 0.3 for i in range(count)]


def residual(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x = x + y
    return diffusers(x, w, b), x


def taken(seen: Rewritten, idiom: str) -> Rewritten:
    """One site, with the norm and its bias: nothing is added in the graph any more."""
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (idiom, "rewritten", {"rms_norm": 1}), (
        str(site)
    )
    assert torch.ops.aten.add.Tensor not in seen.targets()
    return seen


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_behind_a_residual(norm: Norm, dtype: torch.dtype) -> None:
    def block(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return norm(x, w, b), x

    seen = taken(check(block, *stream(dtype), *affine(dtype)), "residual_norm")
    found = seen.only().parameters
    assert found["bias"] is dtype
    rounds = dtype is not F32 and norm is not once_rounded
    assert found["rounds_before_bias"] is (dtype if rounds else None)


def test_its_roundings_are_reproduced() -> None:
    """Bit for bit: the sum's, and three of the norm's."""
    args = (*stream(), *affine())
    seen = taken(rewrite(residual, *args), "residual_norm")
    for ours, eager in zip(seen.result, residual(*args), strict=True):
        assert torch.equal(ours, eager)
    total = args[0] + args[1]
    assert not torch.equal(diffusers(total, *args[2:]), once_rounded(total, *args[2:]))


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_before_a_modulation(norm: Norm, dtype: torch.dtype) -> None:
    def block(x: Tensor, w: Tensor, b: Tensor, s: Tensor, h: Tensor) -> Tensor:
        return norm(x, w, b) * (1 + s) + h

    seen = taken(check(block, stream(dtype)[0], *affine(dtype), *tables(2, dtype)), "norm_modulate")
    assert (seen.only().parameters["bias"], seen.only().parameters["shift"]) == (dtype, True)


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_between_a_residual_and_a_modulation(norm: Norm) -> None:
    def block(
        x: Tensor, y: Tensor, g: Tensor, w: Tensor, b: Tensor, s: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = x + g * y
        return norm(x, w, b) * (1 + s) + h, x

    gate, scale, shift = tables(3)
    seen = check(block, *stream(), gate, *affine(), scale, shift)
    assert seen.only().parameters["bias"] is BF16
    taken(seen, "residual_norm_modulate")


def test_one_biased_norm_feeds_two_modulations() -> None:
    def block(x: Tensor, w: Tensor, b: Tensor, *t: Tensor) -> tuple[Tensor, Tensor]:
        y = diffusers(x, w, b)
        return y * (1 + t[0]) + t[1], y * (1 + t[2])

    seen = taken(check(block, stream()[0], *affine(), *tables(3)), "norm_modulate")
    assert seen.only().parameters["modulations"] == 2


def test_a_bias_of_three_dims_and_no_weight() -> None:
    def unweighted(x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return (x * torch.rsqrt(wide(x).pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) + b, x

    seen = taken(check(unweighted, *stream(), affine()[1].view(1, 1, D)), "residual_norm")
    assert (seen.only().parameters["weight"], seen.only().parameters["bias"]) == (None, BF16)


def test_a_float32_bias_gives_float32() -> None:
    x, y = stream()
    w, b = affine()
    seen = taken(rewrite(residual, x, y, w, b.float()), "residual_norm")
    assert (seen.only().parameters["rounds_before_bias"], seen.only().parameters["out_dtype"]) == (
        BF16,
        F32,
    )
    assert torch.equal(seen.result[0], residual(x, y, w, b.float())[0])


def test_a_bias_computed_from_the_sum_leaves_the_norm_alone() -> None:
    """The operator gives the sum and would read what is made of it."""

    def block(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return diffusers(x, w, x.mean((0, 1))), x

    seen = check(block, *stream(), affine()[0])
    assert [o for o in outcomes(seen) if o[1] == "rewritten"] == [("rms_norm", "rewritten")]
    assert covered(seen) == {"rms_norm": 1}


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("gated", [True, False])
def test_on_the_branch_it_stands_alone(norm: Norm, gated: bool) -> None:
    def block(x: Tensor, y: Tensor, g: Tensor, w: Tensor, b: Tensor) -> Tensor:
        normed = norm(y, w, b)
        return x + (g * normed if gated else normed)

    seen = check(block, *stream(), *tables(1), *affine())
    assert outcomes(seen) == [("rms_norm", "rewritten")]
    assert (dict(seen.only().covers), seen.only().parameters["bias"]) == ({"rms_norm": 1}, BF16)


def test_on_the_branch_the_chain_behind_it_is_taken_without_it() -> None:
    def block(x: Tensor, y: Tensor, g: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x + g * diffusers(y, w, b)
        return diffusers(x, w, b), x

    seen = check(block, *stream(), *tables(1), *affine())
    assert sorted(outcomes(seen)) == [("residual_norm", "rewritten"), ("rms_norm", "rewritten")]
    assert covered(seen) == {"rms_norm": 2}
    chain = next(e for e in seen.sites if e.idiom in CHAINS)
    assert (chain.parameters["branch_norm"], chain.parameters["bias"]) == (False, BF16)


def test_its_one_rounding_is_noted_and_strict_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum's own rounding is kept, so that nothing else of the chain differs."""
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: True)
    args = (*stream(), *affine())
    options = {"lowering": {"residual_norm": "triton"}}
    (note,) = rewrite(residual, *args, options=options).only().notes
    assert note.startswith("weight and bias are computed in fp32 and rounded once")
    strict = rewrite(residual, *args, options={**options, "rewrite_numerics": "strict"})
    assert not [e for e in strict.sites if e.idiom in CHAINS]
    assert any("rewrite_numerics='strict'" in c for e in strict.sites for c in e.considered)
    wider = rewrite(
        residual, *stream(F32), *affine(F32), options={**options, "rewrite_numerics": "strict"}
    )
    assert all(e.lowering != "triton" for e in wider.sites), "it sums in an order of its own"
    considered = [c for e in wider.sites for c in e.considered]
    assert any("strict': its bits may differ" in c for c in considered)
