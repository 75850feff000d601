"""GroupNorm with SiLU or SpatialNorm3D's tail: found in 3-D to 5-D, in any layout; near misses left
alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.idioms.norm_cases import BF16, F16, F32, check, draw, outcomes, use_reference
from tests.rewriting import rewrite

C = 16


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def norm_silu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 4, w, b, 1e-6))


def drawn(*shape: int, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*shape, dtype=dtype), draw(C, dtype=dtype, seed=1), draw(C, dtype=dtype, seed=2)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("shape", [(2, C, 5, 6), (1, C, 2, 3, 5), (2, C, 7)], ids=str)
def test_with_silu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    seen = check(norm_silu, *drawn(*shape, dtype=dtype))
    assert outcomes(seen) == [("group_norm", "rewritten")]
    site = seen.only()
    assert (site.parameters["groups"], site.parameters["silu"]) == (4, True)
    assert not {torch.ops.aten.var_mean.correction, torch.ops.aten.exp.default} & set(
        seen.targets()
    )


@pytest.mark.parametrize(
    ("rank", "layout"), [(4, torch.channels_last), (5, torch.channels_last_3d)]
)
def test_channels_last_stays(rank: int, layout: torch.memory_format) -> None:
    x, w, b = drawn(2, C, *[3] * (rank - 2))
    x = x.to(memory_format=layout)
    seen = rewrite(norm_silu, x, w, b)
    assert outcomes(seen) == [("group_norm", "rewritten")]
    torch.testing.assert_close(seen.result, norm_silu(x.contiguous(), w, b))


def test_alone() -> None:
    seen = check(lambda x, w, b: F.group_norm(x, 4, w, b, 1e-5), *drawn(2, C, 4, 4, dtype=BF16))
    assert outcomes(seen) == [("group_norm", "rewritten")]
    assert seen.only().parameters["silu"] is False


def test_without_weights_and_one_group() -> None:
    assert outcomes(check(lambda x: F.group_norm(x, 1), draw(2, C, 4, 4))) == [
        ("group_norm", "rewritten")
    ]


def test_spatial_norm() -> None:
    """CogVideoX: the norm times one tensor plus another, then SiLU."""

    def spatial(x: Tensor, w: Tensor, b: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 4, w, b, 1e-6) * y + a)

    args = (
        *drawn(1, C, 2, 3, 4, dtype=BF16),
        draw(1, C, 2, 3, 4, dtype=BF16, seed=3),
        draw(1, C, 2, 3, 4, dtype=BF16),
    )
    seen = check(spatial, *args)
    assert outcomes(seen) == [("group_norm", "rewritten")]
    assert seen.only().parameters["spatial"] is True


def test_a_norm_used_before_silu_too_ends_there() -> None:
    def both(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y = F.group_norm(x, 4, w, b, 1e-6)
        return F.silu(y), y

    seen = check(both, *drawn(2, C, 4, 4))
    assert seen.only().parameters["silu"] is False


def test_a_per_channel_multiplier_is_not_spatial() -> None:
    def scaled(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.group_norm(x, 4, w, b, 1e-6) * w[:, None, None] + b[:, None, None]

    seen = check(scaled, *drawn(2, C, 4, 4))
    assert seen.only().parameters["spatial"] is False


def test_large_mean() -> None:
    x, w, b = drawn(2, C, 8, 8)
    assert outcomes(check(norm_silu, x + 1000, w, b, units=2.0)) == [("group_norm", "rewritten")]


def refused(fn: object, *args: Tensor) -> str:
    seen = rewrite(fn, *args)  # type: ignore[arg-type]
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "group_norm",
        "refused",
        {"group_norm": 1},
    )
    torch.testing.assert_close(seen.result, fn(*args))  # type: ignore[operator]
    return site.reason


def test_refuses_statistics_used_outside() -> None:
    def norm(x: Tensor) -> tuple[Tensor, ...]:
        return torch.native_group_norm(x, None, None, 2, C, 16, 4, 1e-6)

    assert "used outside" in refused(norm, draw(2, C, 4, 4))


def test_refuses_float64() -> None:
    assert "float64" in refused(lambda x: F.group_norm(x, 4), draw(2, C, 4, 4).double())


def test_training_graphs_have_an_entry() -> None:
    x = draw(2, C, 4, 4).requires_grad_()
    seen = rewrite(nn.GroupNorm(4, C), x, grad=True)
    assert ("group_norm", "refused") in outcomes(seen)
    assert any("training graph" in e.reason for e in seen.sites)
