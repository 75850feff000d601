"""What a chain may not take: tables computed from its own values, casts that change values; and
strict numerics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.idioms.norm_cases import BF16, F16, F32, check, draw, listed, outcomes, use_reference
from tests.rewriting import Rewritten, rewrite
from tests.without_codegen import without_codegen

B, S, D = 2, 5, 64
REWRITTEN = "rewritten"


@pytest.fixture(autouse=True)
def only_the_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_reference(monkeypatch)
    with without_codegen():
        yield


def layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def rms(x: Tensor, w: Tensor | float = 1.0) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def stream(dtype: torch.dtype = F32) -> tuple[Tensor, Tensor, Tensor]:
    table = draw(B, 1, D, seed=2).to(dtype)
    return draw(B, S, D, dtype=dtype), draw(B, S, D, dtype=dtype, seed=1), table


OWN: dict[str, tuple[str, Callable[..., Any]]] = {
    "scale is the norm": ("layer_norm", lambda x, y, z: (lambda n: n * (1 + n))(layer(x))),
    "scale from the norm": (
        "layer_norm",
        lambda x, y, z: (lambda n: n * (1 + n.mean(1, keepdim=True)))(layer(x)),
    ),
    "shift is the norm": ("norm_modulate", lambda x, y, z: (lambda n: n * (1 + z) + n)(layer(x))),
    "shift from the norm": (
        "norm_modulate",
        lambda x, y, z: (lambda n: n * (1 + z) + n.amax(1, keepdim=True))(layer(x)),
    ),
    "scale from another result": (
        "norm_modulate",
        lambda x, y, z: (lambda n: (lambda m: (m, n * (1 + m)))(n * (1 + z)))(layer(x)),
    ),
    "shift is the sum": (
        "residual_norm_modulate",
        lambda x, y, z: (lambda h: (layer(h) * (1 + z) + h, h))(x + y),
    ),
    "scale is the sum": (
        "residual_norm",
        lambda x, y, z: (lambda h: (layer(h) * (1 + h), h))(x + y),
    ),
    "scale from the sum": (
        "residual_norm",
        lambda x, y, z: (lambda h: (layer(h) * (1 + h.mean(1, keepdim=True)), h))(x + y),
    ),
    # The norm takes its bias, and the chain that would write the sum ends before it.
    "bias from the sum": (
        "rms_norm",
        lambda x, y, z: (lambda h: (rms(h) + h.mean((0, 1)), h))(x + y),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_chain_ends_before_its_own_values(name: str) -> None:
    idiom, fn = OWN[name]
    assert outcomes(check(fn, *stream())) == [(idiom, REWRITTEN)]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, y, z: (lambda h: (layer(h), h))(x + x),
        lambda x, y, z: (lambda h: (layer(h), h))(x + x * x),
        lambda x, y, z: (lambda h: (layer(h), h))(x + y * y),
        lambda x, y, z: (lambda n: n * n)(rms(x)),
        lambda x, y, z: (lambda n: n + n)(rms(x)),
        lambda x, y, z: (lambda n: n * n + n)(layer(x)),
        lambda x, y, z: (lambda r: x + r * r)(rms(y)),
        lambda x, y, z: (lambda m: m + m)(layer(x) * (1 + z)),
        lambda x, y, z: layer(x) * (1 + z) + z,
    ],
)
def test_a_value_read_twice(fn: Callable[..., Any]) -> None:
    seen = check(fn, *stream())
    assert REWRITTEN in [outcome for _, outcome in outcomes(seen)]


def same_values(fn: Callable[..., Any], *args: Tensor) -> Rewritten:
    seen = rewrite(fn, *args)
    for got, want in zip(listed(seen.result), listed(fn(*args)), strict=True):
        assert got.dtype is want.dtype
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-2, atol=1e-4)
    return seen


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("place", ["gate", "sum", "branch norm", "scale", "shift", "norm"])
def test_a_cast_that_loses_information_is_a_value(dtype: torch.dtype, place: str) -> None:
    def lossy(t: Tensor, here: str) -> Tensor:
        return (3 * t).to(dtype).to(t.dtype) if here == place else t

    def fn(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        y = lossy(rms(y), "branch norm")
        h = lossy(x + lossy(z * y, "gate"), "sum")
        n = lossy(layer(h), "norm")
        return n * lossy(1 + z, "scale") + lossy(z, "shift"), h

    same_values(fn, *stream())


LOW: dict[str, tuple[str, Callable[..., Any]]] = {
    "rms_norm": ("rms_norm", lambda x, w, to: rms(x.float(), w).to(to)),
    "rms_norm without a weight": ("rms_norm", lambda x, w, to: rms(x.float()).to(to)),
    "rms_norm with a bias": ("rms_norm", lambda x, w, to: (rms(x.float(), w) + w.float()).to(to)),
    "layer_norm": ("layer_norm", lambda x, w, to: layer(x.float()).to(to)),
    "residual_norm": (
        "residual_norm",
        lambda x, w, to: (lambda s: (s, rms(s.float(), w).to(to)))(x + x.flip(0)),
    ),
    "norm_modulate": ("norm_modulate", lambda x, w, to: (layer(x) * (1 + w) + w).to(to)),
    "norm_residual": ("norm_residual", lambda x, w, to: (x + rms(x.flip(0), w)).to(to)),
}


@pytest.mark.parametrize("to", [torch.float8_e4m3fn, torch.int8, torch.float64])
@pytest.mark.parametrize("name", LOW)
def test_a_site_ends_before_a_cast_to_what_its_kernel_does_not_write(
    name: str, to: torch.dtype
) -> None:
    idiom, fn = LOW[name]
    x, w = draw(4, S, D, dtype=BF16), draw(D, dtype=BF16, seed=1)
    seen = rewrite(fn, x, w, to)
    assert outcomes(seen) == [(idiom, REWRITTEN)]
    got, want = listed(seen.result)[-1], listed(fn(x, w, to))[-1]
    assert got.dtype is to
    # A rounding in between may move a value to the next one of 8 bits.
    bound = 0.13 * want.double().abs().max() if to is not torch.int8 else 1
    assert (got.double() - want.double()).abs().max() <= bound


STRICT: dict[str, Callable[..., Any]] = {
    "LayerNorm in 16 bits, widened": lambda x, y, z: layer(x).float(),
    "RMSNorm in 16 bits": lambda x, y, z: rms(x, z[0, 0]),
    "RMSNorm in 16 bits, widened": lambda x, y, z: rms(x).float(),
    "squares in 16 bits": lambda x, y, z: (
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True, dtype=F32) + 1e-6)
    ),
    "mean in 16 bits": lambda x, y, z: (
        x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True, dtype=x.dtype) + 1e-6)
    ),
    "1 + scale in 16 bits": lambda x, y, z: layer(x.float()) * (1 + z) + z,
    "1 + weight in 16 bits": lambda x, y, z: rms(x.float()) * (1 + z[0, 0]),
    "division": lambda x, y, z: x.float() / (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(),
    "weight first": lambda x, y, z: (
        (z[0, 0].float() * x.float()) * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    ),
    "LayerNorm by hand": lambda x, y, z: (
        lambda d: d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + 1e-6)
    )(x.float() - x.float().mean(-1, keepdim=True)),
    "modulation in 16 bits": lambda x, y, z: layer(x) * (1 + z) + z,
    "gate in 16 bits": lambda x, y, z: (lambda h: (layer(h), h))(x + z * y),
    "branch's norm in 16 bits": lambda x, y, z: x + rms(y),
    "GroupNorm + SiLU in 16 bits": lambda x, y, z: F.silu(F.group_norm(x.transpose(1, 2), 8)),
}


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("name", STRICT)
def test_strict_numerics_give_the_graphs_bits(name: str, dtype: torch.dtype) -> None:
    """Or the site is refused, and says why."""
    fn, args = STRICT[name], stream(dtype)
    seen = rewrite(fn, *args, options={"numerics": "strict"})
    # What is refused is decomposed as Inductor would, which gives other bits than ATen's norms.
    plain = rewrite(fn, *args, options={"select": "off"})
    wanted = [listed(fn(*args)), listed(plain.result)]
    for got, *either in zip(listed(seen.result), *wanted, strict=True):
        assert any(torch.equal(got, want) for want in either)
    refused = [e for e in seen.sites if e.outcome == "refused"]
    assert all("strict" in e.reason for e in refused)
    assert seen.sites


SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "branch first": lambda x, y, g: g * y + x,
    "branch last": lambda x, y, g: x + g * y,
    "gate last": lambda x, y, g: x + y * g,
    "no gate": lambda x, y, g: y + x,
}


@pytest.mark.parametrize("moved", ["none", "x", "branch", "gate", "all"])
@pytest.mark.parametrize("form", SUMS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_strict_sums_rows_as_they_lie_in_the_graph(kind: str, form: str, moved: str) -> None:
    """A sum lies as its first operand does, and ATen sums rows of other strides in another order.

    The operator adds in an order of its own.
    """

    def lying(t: Tensor, name: str) -> Tensor:
        return t.transpose(0, 2).contiguous().transpose(0, 2) if moved in (name, "all") else t

    def fn(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        s = SUMS[form](x, y, g)
        if kind == "layer":
            return F.layer_norm(s, (D,))
        return s * torch.rsqrt(s.pow(2).mean(-1, keepdim=True) + 1e-5)

    x, y, g = (draw(8, 3, D, dtype=F32, seed=seed) for seed in range(3))
    x, y, g = lying(x, "x"), lying(y, "branch"), lying(g, "gate")
    seen = rewrite(fn, x, y, g, options={"rewrite_numerics": "strict"})
    assert torch.equal(seen.result, fn(x, y, g))
    if moved == "none":
        assert outcomes(seen) == [("residual_norm", REWRITTEN)]


def test_strict_numerics_take_what_is_exact() -> None:
    def diffusers(x: Tensor, w: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype) * w

    x, _, z = stream(BF16)
    seen = rewrite(diffusers, x, z[0, 0], options={"numerics": "strict"})
    assert outcomes(seen) == [("rms_norm", REWRITTEN)]
    assert torch.equal(seen.result, diffusers(x, z[0, 0]))


@pytest.mark.parametrize("to", [BF16, F16])
@pytest.mark.parametrize("biased", [False, True])
def test_strict_refuses_what_the_graph_rounds_twice(
    biased: bool, to: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From float16 to bfloat16: the operator would round once."""
    use_reference(monkeypatch)

    def fn(x: Tensor, w: Tensor) -> Tensor:
        y = F.rms_norm(x, (D,), None, 1e-5) * (w + 0.5)
        return (y + w if biased else y).to(to)

    x, w = draw(4, S, D, dtype=F16), draw(D, dtype=F16, seed=1)
    seen = rewrite(fn, x, w, options={"rewrite_numerics": "strict"})
    assert torch.equal(seen.result, fn(x, w))
    (entry,) = [e for e in seen.sites if e.idiom == "rms_norm"]
    assert ("rounds once" in entry.reason) == (to is BF16), entry.reason
