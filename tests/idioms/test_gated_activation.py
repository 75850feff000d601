"""SwiGLU's and GEGLU's product: rewritten within the accuracy bar, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.accuracy import assert_no_worse
from tests.rewriting import ON_CPU, Rewritten, rewrite

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOWERING = "triton" if torch.cuda.is_available() else ON_CPU
ACTS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh")}


def gated(gate: Tensor, x: Tensor, act: str = "silu") -> Tensor:
    result: Tensor = x * ACTS[act](gate)
    return result


def operands(dtype: torch.dtype = torch.float32, *shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    gate, x = 3 * torch.randn(2, *(shape or (3, 1027)), device=DEVICE).to(dtype)
    return gate, x


def run(fn: Any, *args: Any, **options: Any) -> Rewritten:
    return rewrite(fn, *args, options={"idioms": "gated_activation", **options})


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rewritten_within_the_accuracy_bar(dtype: torch.dtype, act: str) -> None:
    gate, x = operands(dtype)
    seen = run(gated, gate, x, act)
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", LOWERING)
    assert site.parameters == {"act": act}
    original, exact = gated(gate, x, act), gated(gate.double(), x.double(), act)
    assert_no_worse(seen.result, original, exact)


@pytest.mark.parametrize("split", [torch.Tensor.chunk, torch.Tensor.split])
def test_the_halves_of_one_linear_layer_are_read_where_they_lie(split: Any) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 64, device=DEVICE), torch.randn(2, 5, 16, device=DEVICE)

    def feed_forward(x: Tensor) -> Tensor:
        value, gate = split(linear(x), 2 if split is torch.Tensor.chunk else 32, -1)
        return gated(gate, value, "gelu")

    seen = run(feed_forward, x)
    assert seen.only().lowering == LOWERING
    assert torch.ops.aten.clone.default not in seen.targets("after")
    torch.testing.assert_close(seen.result, feed_forward(x))


def test_strided_operands() -> None:
    gate, x = operands(torch.bfloat16, 64, 48)
    seen = run(gated, gate.t(), x.t())
    assert_no_worse(seen.result, gated(gate, x).t(), gated(gate.double(), x.double()).t())


def test_empty_operands() -> None:
    gate, x = operands(torch.bfloat16, 0, 48)
    assert run(gated, gate, x).result.shape == (0, 48)


def test_it_is_left_to_inductor_unless_it_is_measured() -> None:
    site = run(gated, *operands(torch.bfloat16), select="auto").only()
    assert site.outcome == "kept"


def refused(fn: Any, *args: Tensor, **options: Any) -> str:
    site = run(fn, *args, **options).only()
    assert site.outcome == "refused"
    return site.reason


def test_refused_in_a_training_graph() -> None:
    gate, x = (t.requires_grad_() for t in operands())
    seen = rewrite(gated, gate, x, options={"idioms": "gated_activation"}, grad=True)
    # The gradient of x is such a product too.
    assert {e.outcome for e in seen.sites} == {"refused"} and len(seen.sites) == 2
    assert all("a training graph has it decomposed" in e.reason for e in seen.sites)


def test_refused_where_the_activation_is_used_elsewhere() -> None:
    def activation_kept(gate: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        activation = F.silu(gate)
        return activation * x, activation

    assert "used elsewhere" in refused(activation_kept, *operands())


def test_refused_where_shapes_differ() -> None:
    gate, x = operands()
    assert "has shape" in refused(gated, gate[:1], x)


def test_refused_where_dtypes_differ() -> None:
    gate, x = operands()
    assert "gate is torch.bfloat16, x torch.float32" in refused(gated, gate.bfloat16(), x)


def test_refused_in_fp64() -> None:
    gate, x = operands(torch.float64)
    assert "gate is torch.float64" in refused(gated, gate, x)


def test_refused_with_strict_numerics() -> None:
    reason = refused(gated, *operands(torch.bfloat16), rewrite_numerics="strict")
    assert "rounds once" in reason
    assert "strict" in refused(gated, *operands(), rewrite_numerics="strict")


def test_an_activation_alone_is_left_to_inductor() -> None:
    gate, _ = operands()
    seen = run(F.gelu, gate)
    assert seen.sites == []
    assert torch.ops.aten.gelu.default not in seen.targets("after")
