"""Rewritten graphs as Inductor's generated C++ computes them, where other tests run them as they
are.

Each graph holds many idioms and is compiled once for all tests that look at it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.idioms.norm_cases import F16, F32, draw, wide
from tests.rewriting import Rewritten, rewrite

pytestmark = pytest.mark.codegen

B, S, HEADS, SIZE = 2, 7, 3, 16
D = HEADS * SIZE
Function = Callable[..., Tensor]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split pairs."""
    first, second = wide(x).chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)


def transformer(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, gate: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Modulated norm, attention over normalised and rotated heads, and a gated residual norm."""
    h = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift
    heads = h.unflatten(-1, (HEADS, SIZE))
    q, k = (rotated(F.rms_norm(heads * s, (SIZE,), weight, 1e-6), cos, sin) for s in (1.0, 0.5))
    mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, heads)))
    x = x + gate * mixed.transpose(1, 2).flatten(2)
    return F.rms_norm(x, (D,), None, 1e-6) + x


def decoder(x: Tensor, gamma: Tensor, w: Tensor, b: Tensor, kernel: Tensor, mix: Tensor) -> Tensor:
    """A group norm, a padded causal convolution, a channel norm, and a convolution of its
    upsampling.
    """
    h = F.silu(F.group_norm(x, 2, w, b, 1e-6))
    h = F.conv3d(F.pad(h, [1, 1, 1, 1, 2, 0], mode="replicate"), kernel)
    h = F.silu(F.normalize(wide(h), dim=1).to(h.dtype) * 8**0.5 * gamma)
    return F.conv3d(F.interpolate(h, scale_factor=(1.0, 2.0, 2.0)), mix, b)


def transformer_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    theta = draw(S, 1, SIZE // 2, seed=9)
    tables = (draw(B, 1, D, dtype=dtype, seed=i) * 0.3 for i in (2, 3, 4))
    return (
        draw(B, S, D, dtype=dtype),
        1 + 0.1 * draw(SIZE, dtype=dtype, seed=1),
        *tables,
        theta.cos(),
        theta.sin(),
    )


def decoder_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = ((1, 8, 3, 4, 5), (8, 1, 1, 1), (8,), (8,), (8, 8, 3, 3, 3), (8, 8, 1, 1, 1))
    return tuple(
        draw(*shape, dtype=dtype, seed=i) / (1 + 5 * (i > 3)) for i, shape in enumerate(shapes)
    )


#: Every idiom that its graph has, as the ledger names them.
GRAPHS: dict[str, tuple[Function, Callable[[torch.dtype], tuple[Tensor, ...]], set[str]]] = {
    "transformer": (
        transformer,
        transformer_inputs,
        {"norm_modulate", "qk_norm_rotary", "residual_norm", "attention"},
    ),
    "decoder": (
        decoder,
        decoder_inputs,
        {"group_norm_pad", "conv3d", "channel_norm", "upsampled_conv"},
    ),
}


#: Of each graph the fast suite takes one dtype.
FAST = (("transformer", F32), ("decoder", F16))
CASES = [
    pytest.param((g, d), marks=() if (g, d) in FAST else pytest.mark.exhaustive, id=f"{g} {d}")
    for g in GRAPHS
    for d in (F32, F16)
]


@pytest.fixture(scope="module", params=CASES)
def compiled(request: pytest.FixtureRequest) -> tuple[str, tuple[Tensor, ...], Rewritten]:
    name, dtype = request.param
    fn, inputs, _ = GRAPHS[name]
    given = inputs(dtype)
    return name, given, rewrite(fn, *given, codegen=True)


def test_every_idiom_is_rewritten(compiled: Any) -> None:
    name, _, seen = compiled
    assert {e.idiom for e in seen.sites} == GRAPHS[name][2]
    assert {e.outcome for e in seen.sites} == {"rewritten"}


def test_the_values_are_those_of_the_graph_as_it_is_and_as_exact_as_eager(compiled: Any) -> None:
    name, given, seen = compiled
    fn = GRAPHS[name][0]
    exact = fn(*(t.double() for t in given))
    plain, eager = rewrite(fn, *given, codegen=False).result, fn(*given)

    def error(found: Tensor) -> float:
        return float((found.double() - exact).square().mean().sqrt())

    assert seen.result.dtype == eager.dtype and seen.result.stride() == eager.stride()
    assert error(seen.result) <= 1.1 * error(eager)
    assert error(plain) <= 1.1 * error(eager)
