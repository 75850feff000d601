"""What looks like an RMSNorm and is refused with its reason, and what is none and has no site."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.idioms.norm_cases import F32, draw, outcomes, use_reference
from tests.idioms.rms_norm_spellings import D, torch_norm
from tests.rewriting import rewrite


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def near_miss(fn: Callable[..., object], *args: Tensor, grad: bool = False) -> str:
    """The reason of the only site, refused; and the result is the eager one."""
    seen = rewrite(fn, *args, grad=grad)
    site = seen.only()
    assert (site.idiom, site.outcome, site.lowering) == ("rms_norm", "refused", None)
    with torch.no_grad():
        torch.testing.assert_close(seen.result, fn(*args), rtol=2e-2, atol=2e-2)
    return site.reason


def test_refuses_another_dim() -> None:
    def over_tokens(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)

    assert "not over the last one" in near_miss(over_tokens, draw(2, 5, D, dtype=F32))


def test_refuses_two_dims() -> None:
    def over_both(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean((-2, -1), keepdim=True) + 1e-6)

    assert "not over the last one" in near_miss(over_both, draw(2, 5, D, dtype=F32))


def test_refuses_an_inverse_rms_used_twice() -> None:
    def gives_rstd(x: Tensor) -> tuple[Tensor, Tensor]:
        rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * rstd, rstd

    assert "rsqrt is used outside" in near_miss(gives_rstd, draw(5, D, dtype=F32))


def test_refuses_an_inverse_rms_of_something_else() -> None:
    def other(x: Tensor, y: Tensor) -> Tensor:
        return y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    assert "norm's own input" in near_miss(
        other, draw(5, D, dtype=F32), draw(5, D, dtype=F32, seed=1)
    )


def test_refuses_float64() -> None:
    assert "float64" in near_miss(
        torch_norm, draw(5, D, dtype=torch.float64), draw(D, dtype=torch.float64)
    )


def test_refuses_an_inner_value_used_outside() -> None:
    def gives_mean(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6), mean * 2

    assert "is used outside the norm" in near_miss(gives_mean, draw(5, D, dtype=F32))


def test_training_keeps_the_gradient() -> None:
    """The rsqrt is saved for the backward pass, so the site is refused and says so."""
    x = draw(5, D, dtype=F32).requires_grad_()
    w = draw(D, dtype=F32).requires_grad_()
    assert "backward" in near_miss(torch_norm, x, w, grad=True)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * torch.rsqrt(x.mean(-1, keepdim=True).abs() + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6),
        lambda x: torch.nn.functional.layer_norm(x, (D,)),
    ],
    ids=["mean of x", "fourth power", "LayerNorm"],
)
def test_what_is_no_rms_norm_has_no_site(fn: Callable[[Tensor], Tensor]) -> None:
    x = draw(5, D, dtype=F32)
    seen = rewrite(fn, x)
    assert "rms_norm" not in [idiom for idiom, _ in outcomes(seen)]
    torch.testing.assert_close(seen.result, fn(x))
