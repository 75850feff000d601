"""Casts inside a rotation that change values, and the arithmetic that strict numerics leaves to the
graph.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from tests.idioms.rotary_graphs import passed
from tests.idioms.rotary_spellings import DOUBLE, SPELLINGS, Spelling, example
from tests.idioms.test_rotary_dims import draw, halves

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
Cast = Callable[[Tensor], Tensor]

VALUES: dict[str, Cast] = {
    "int": lambda t: t.to(torch.int32).to(t.dtype),
    "fp8": lambda t: t.to(torch.float8_e4m3fn).to(t.dtype),
    "fp16": lambda t: t.half().to(t.dtype),
    "bf16": lambda t: t.bfloat16().to(t.dtype),
}


def of_a_product(cast: Cast, q: Tensor, c: Tensor, s: Tensor) -> Tensor:
    a, b = q[..., 0::2], q[..., 1::2]
    return torch.stack([cast(a * c) - b * s, b * c + a * s], -1).flatten(-2)


def of_a_lane(cast: Cast, q: Tensor, c: Tensor, s: Tensor) -> Tensor:
    a, b = q[..., 0::2], q[..., 1::2]
    return torch.stack([cast(a * c - b * s), b * c + a * s], -1).flatten(-2)


def written(cast: Cast, q: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Assigned into a tensor of a narrower dtype, and computed with behind that."""
    a, b = q[..., 0::2], q[..., 1::2]
    out = torch.empty_like(q)
    out[..., 0::2] = cast(a * c)
    out[..., 1::2] = cast(b * c)
    out[..., 0::2] -= b * s
    out[..., 1::2] += a * s
    return out


@pytest.mark.parametrize("where", [of_a_product, of_a_lane, written], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", VALUES)
def test_a_cast_that_changes_values(kind: str, where: Callable[..., Tensor]) -> None:
    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return where(VALUES[kind], q, c, s)

    args = (draw(2, 5, 3, 8) * 5, draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert torch.equal(seen.result[0], seen.before[0])
    assert torch.equal(seen.result[0], fn(*args))
    assert [e.outcome for e in seen.sites] in ([], ["refused"])
    reason = "is used outside" if where is written else "changes the values"
    assert all(reason in e.reason for e in seen.sites)


def test_the_cast_that_ends_both_lanes_is_recorded() -> None:
    """Mochi: each lane is rounded to x's dtype, then they are stacked."""

    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = q[..., 0::2].float(), q[..., 1::2].float()
        return torch.stack([(a * c - b * s).to(q.dtype), (b * c + a * s).to(q.dtype)], -1).flatten(
            -2
        )

    args = (draw(2, 5, 3, 8).to(BF16), draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    seen = passed(fn, *args, options={"rewrite_numerics": "strict"})
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert torch.equal(seen.result[0], fn(*args))


def test_a_cast_and_back_of_x_itself_is_none() -> None:
    """bf16 values lose nothing in float32 and back."""

    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return halves(q.float().to(BF16).float(), c, s)

    args = (draw(2, 5, 3, 8).to(BF16), draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert torch.equal(seen.result[0], fn(*args))


def test_a_cast_of_x_that_loses_makes_another_x() -> None:
    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return halves(q.to(BF16).float(), c, s)

    args = (draw(2, 5, 3, 8), draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert seen.sites[0].parameters["x_dtype"] is BF16
    assert torch.equal(seen.result[0], fn(*args))


@pytest.mark.parametrize("kind", ["int", "fp8"])
def test_a_cast_behind_the_rotation_stays_there(kind: str) -> None:
    to = {"int": torch.int32, "fp8": torch.float8_e4m3fn}[kind]

    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return halves(q, c, s).to(to)

    args = (draw(2, 5, 3, 8) * 5, draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert seen.sites[0].parameters["out_dtype"] is F32
    assert torch.equal(seen.result[0].float(), fn(*args).float())


@pytest.mark.parametrize("first", [F16, BF16], ids=str)
def test_a_norm_rounded_to_another_dtype_before_the_rotation(first: torch.dtype) -> None:
    """x is float32: the fused operator rounds a norm's result to x's dtype or not at all."""

    def fn(q: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        y = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6) * w
        return halves(y.to(first).float(), c, s)

    args = (draw(2, 5, 3, 8), draw(5, 1, 4, seed=1), draw(5, 1, 4, seed=2), draw(8, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert torch.equal(seen.result[0], fn(*args))


def test_k_of_another_result_dtype_is_a_call_of_its_own() -> None:
    def fn(q: Tensor, k: Tensor, c: Tensor, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) * w for t in (q, k))
        return halves(q, c, s).to(BF16), halves(k, c, s)

    args = (
        draw(2, 5, 3, 8),
        draw(2, 5, 3, 8, seed=4),
        *(draw(5, 1, 4, seed=i) for i in (1, 2)),
        draw(8),
    )
    seen = passed(fn, *args)
    assert "refused" not in [o for _, o in seen.outcomes()]
    for got, wanted in zip(seen.result, fn(*args), strict=True):
        assert got.dtype is wanted.dtype
        assert torch.allclose(got.float(), wanted.float(), rtol=1e-2, atol=1e-2)


def tensor_of(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("spelling", (*SPELLINGS, *DOUBLE), ids=lambda s: f"{s.name}{s.fp64}")
def test_strict_gives_the_bits_of_the_graph_or_refuses(
    spelling: Spelling, dtype: torch.dtype
) -> None:
    case = example(spelling, 2, 7, 3, 16, dtype)
    seen = passed(spelling.rotate, *case.args, options={"rewrite_numerics": "strict"})
    assert torch.equal(seen.result[0], seen.before[0])
    in_16_bits = spelling.name in ("p4b", "first_channels") and dtype is not F32
    fused = spelling.name in ("p6", "p8")
    (entry,) = seen.sites
    by_complex = any(node.meta["val"].is_complex() for node in seen.graph.nodes if tensor_of(node))
    assert by_complex == ("complex numbers" in entry.reason)
    assert entry.outcome == ("refused" if in_16_bits or fused or by_complex else "rewritten")
    if in_16_bits:
        name = str(dtype)
        assert (
            entry.reason
            == f"rewrite_numerics='strict': the graph computes it in {name}, and an operator in "
            "float32"
        )


def test_strict_refuses_a_sum_that_loses_the_sign_of_a_zero() -> None:
    """A sum begins at +0: of two products that are -0 it makes +0, as adding them would not."""

    def fn(q: Tensor, m: Tensor) -> Tensor:
        return (m * q.reshape(*q.shape[:-1], -1, 1, 2)).sum(-1).reshape(q.shape)

    args = torch.zeros(2, 5, 3, 8), -torch.ones(1, 5, 1, 4, 2, 2)
    assert not fn(*args).signbit().any()
    seen = passed(fn, *args, options={"rewrite_numerics": "strict"})
    assert "+0 of two -0" in seen.sites[0].reason
    assert not seen.result[0].signbit().any()
    assert passed(fn, *args).outcomes() == [("rotary", "rewritten")]


def test_strict_refuses_what_rounds_twice() -> None:
    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = q.chunk(2, -1)
        return torch.cat([(a * c - b * s).to(F16), (b * c + a * s).to(F16)], -1).to(BF16)

    args = (draw(2, 5, 3, 8), draw(1, 5, 1, 4, seed=1), draw(1, 5, 1, 4, seed=2))
    assert (
        "rounds its result twice"
        in passed(fn, *args, options={"rewrite_numerics": "strict"}).sites[0].reason
    )
    assert passed(fn, *args).outcomes() == [("rotary", "rewritten")]
