"""Norm and modulation without a residual: every order, shape and dtype of the factor; what is none
is left alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.idioms.norm_cases import (
    BF16,
    F16,
    F32,
    check,
    covered,
    draw,
    outcomes,
    use_reference,
    wide,
)
from tests.rewriting import rewrite

B, S, D = 2, 7, 48


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def rows(dtype: torch.dtype = BF16, batch: int = B) -> Tensor:
    return draw(batch, S, D, dtype=dtype)


def table(seed: int, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return draw(*(shape or (B, 1, D)), dtype=dtype, seed=seed) * 0.3


TAKEN = [("norm_modulate", "rewritten")]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_scale_and_shift(dtype: torch.dtype) -> None:
    seen = check(
        lambda x, s, b: layer(x) * (1 + s) + b,
        rows(dtype),
        table(1, dtype=dtype),
        table(2, dtype=dtype),
    )
    assert outcomes(seen) == TAKEN
    assert (seen.only().parameters["modulations"], seen.only().parameters["shift"]) == (1, True)


@pytest.mark.parametrize("shape", [(1, 1, D), (B, S, D), (D,), (B, 1, D)], ids=str)
def test_tables_of_any_shape(shape: tuple[int, ...]) -> None:
    seen = check(lambda x, s, b: (1 + s) * layer(x) + b, rows(), table(1, *shape), table(2, *shape))
    assert outcomes(seen) == TAKEN


def test_one_sample_of_an_rms_norm() -> None:
    """With a batch of one the factor has the shape of a weight; the shift still belongs to the
    site.
    """

    def block(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
        n = (x * torch.rsqrt(wide(x).pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return n * (1 + s) + b

    seen = check(block, rows(batch=1), table(1, 1, 1, D), table(2, 1, 1, D))
    assert outcomes(seen) == TAKEN
    assert dict(seen.only().covers) == {"rms_norm": 1}


def test_fp32_until_the_end() -> None:
    """Kandinsky: everything in fp32, `scale + 1.0`, one rounding."""

    def block(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
        return (layer(wide(x)) * (wide(s) + 1.0) + wide(b)).type_as(x)

    seen = check(block, rows(), table(1), table(2))
    assert outcomes(seen) == TAKEN
    assert not seen.only().notes


def test_a_factor_behind_a_view() -> None:
    """CogVideoX adds one before it inserts the dim: the factor is then taken as it is."""

    def block(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
        return layer(x) * (1 + s)[:, None, :] + b[:, None, :]

    assert outcomes(check(block, rows(), table(1, B, D), table(2, B, D))) == TAKEN


def test_one_norm_feeds_two_modulations() -> None:
    def block(x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor]:
        n = layer(x)
        return n * (1 + t[0]) + t[1], n * (1 + t[2]) + t[3]

    seen = check(block, rows(), *[table(i) for i in range(1, 5)])
    assert outcomes(seen) == TAKEN
    assert seen.only().parameters["modulations"] == 2


def test_the_norm_itself_used_too() -> None:
    def block(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        n = layer(x)
        return n * (1 + s), n

    assert outcomes(check(block, rows(), table(1))) == TAKEN


def test_three_uses_are_left_to_the_norm() -> None:
    def block(x: Tensor, *t: Tensor) -> list[Tensor]:
        n = layer(x)
        return [n * (1 + s) for s in t]

    seen = check(block, rows(), *[table(i) for i in range(1, 4)])
    assert outcomes(seen) == [("layer_norm", "rewritten")]
    assert any("3 different uses" in c for c in seen.only().considered)


def test_results_of_two_dtypes_are_left_to_the_norm() -> None:
    def block(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        n = layer(wide(x))
        return (n * (1 + s)).type_as(x), n

    seen = check(block, rows(), table(1))
    assert outcomes(seen) == [("layer_norm", "rewritten")]
    assert any("different dtypes" in c for c in seen.only().considered)


def test_a_plain_product_is_no_modulation() -> None:
    """A rotation's cosine half, or a gate: no 1 is added."""
    seen = check(lambda x, s, b: layer(x) * s + b, rows(), table(1), table(2))
    assert outcomes(seen) == [("layer_norm", "rewritten")]


def test_a_broadcast_of_the_norm_is_no_modulation() -> None:
    seen = check(lambda x, s: layer(x) * (1 + s), rows(batch=1), table(1, 3, 1, D))
    assert covered(seen) == {"layer_norm": 1}
    assert outcomes(seen) == [("layer_norm", "rewritten")]


def test_rounding_differences_are_noted_and_strict_refuses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: True)

    def block(x: Tensor, s: Tensor) -> Tensor:
        return layer(x) * (1 + s)

    seen = rewrite(block, rows(), table(1), options={"lowering": {"norm_modulate": "triton"}})
    assert "rounded once" in seen.only().notes[0]
    seen = rewrite(
        block,
        rows(),
        table(1),
        options={"lowering": {"norm_modulate": "triton"}, "rewrite_numerics": "strict"},
    )
    assert seen.only().idiom == "layer_norm"
    assert any("rewrite_numerics='strict'" in c for c in seen.only().considered)
    seen = rewrite(block, rows(F32), table(1, dtype=F32), options={"rewrite_numerics": "strict"})
    assert outcomes(seen) == TAKEN
    assert seen.only().lowering == "reference", "the kernel sums in an order of its own"
