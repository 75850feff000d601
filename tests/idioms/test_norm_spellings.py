"""Norms as people write them: each is rewritten, each keeps its own way of guarding the root, or
says why not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.idioms.norm_cases import BF16, F16, F32, check, draw, outcomes, use_reference, wide
from tests.rewriting import Rewritten, rewrite
from tests.without_codegen import without_codegen

D, E = 64, 1e-3


@pytest.fixture(autouse=True)
def only_the_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_reference(monkeypatch)
    with without_codegen():
        yield


def ms(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


RMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x / sqrt": lambda x, w: x / torch.sqrt(ms(x) + E) * w,
    "power of -0.5": lambda x, w: x * (ms(x) + E) ** -0.5 * w,
    "1 / sqrt": lambda x, w: x * (1 / torch.sqrt(ms(x) + E)) * w,
    "sum / D": lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / D + E) * w,
    "sum * (1 / D)": lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) * (1 / D) + E) * w,
    "no keepdim": lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1) + E).unsqueeze(-1) * w,
    "abs ** 2": lambda x, w: x * torch.rsqrt((x.abs() ** 2).mean(-1, keepdim=True) + E) * w,
    "(w * rstd) * x": lambda x, w: (w * torch.rsqrt(ms(x) + E)) * x,
    "(w * x) / rms": lambda x, w: (w * x) / torch.sqrt(ms(x) + E),
    "einsum": lambda x, w: (
        x * torch.rsqrt(torch.einsum("...d,...d->...", x, x)[..., None] / D + E) * w
    ),
}
#: The root is not guarded by an eps that is added to the mean.
GUARDED: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "clamp_min": ("clamp", lambda x, w: x * torch.rsqrt(ms(x).clamp_min(E)) * w),
    "clamp(min=)": ("clamp", lambda x, w: x * torch.rsqrt(ms(x).clamp(min=E)) * w),
    "root clamped": ("clamp", lambda x, w: x / torch.sqrt(ms(x)).clamp_min(E) * w),
    "F.normalize * sqrt(D)": (
        "clamp",
        lambda x, w: F.normalize(x, dim=-1, eps=E) * math.sqrt(D) * w,
    ),
    "F.normalize * w * sqrt(D)": (
        "clamp",
        lambda x, w: F.normalize(x, dim=-1, eps=E) * w * math.sqrt(D),
    ),
    "vector_norm": (
        "after_root",
        lambda x, w: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(D) + E) * w,
    ),
    "length + eps": (
        "after_root",
        lambda x, w: x / (x.pow(2).sum(-1, keepdim=True).sqrt() + E) * math.sqrt(D) * w,
    ),
    "reciprocal of the root + eps": (
        "after_root",
        lambda x, w: x * (1 / (torch.sqrt(ms(x)) + E)) * w,
    ),
}
LAYER: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "by var": lambda x, w, b: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + E) * w
        + b
    ),
    "by hand": lambda x, w, b: (
        lambda d: d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + E) * w + b
    )(x - x.mean(-1, keepdim=True)),
    "no keepdim": lambda x, w, b: (
        lambda d: d * torch.rsqrt(d.pow(2).mean(-1) + E)[..., None] * w + b
    )(x - x.mean(-1, keepdim=True)),
}


def rows(dtype: torch.dtype = F32) -> Tensor:
    """Of every size beside E, zeros among them: each way to guard the root gives other values."""
    sizes = torch.tensor([0.0, 1e-9, 1e-4, 1e-3, 3e-2, 1.0, 1e4])[:, None]
    return (draw(2, 7, D) * sizes).to(dtype)


def only(seen: Rewritten, idiom: str) -> Rewritten:
    site = seen.only()
    assert (site.idiom, site.outcome) == (idiom, "rewritten"), str(site)
    return seen


@pytest.mark.parametrize("name", RMS)
def test_rms_norm(name: str) -> None:
    seen = only(check(RMS[name], rows(), draw(D, seed=1)), "rms_norm")
    assert (seen.only().parameters["eps"], "eps_kind" in seen.only().parameters) == (E, False)


@pytest.mark.parametrize("name", GUARDED)
def test_the_root_is_guarded_as_it_is_spelled(name: str) -> None:
    kind, fn = GUARDED[name]
    seen = only(check(fn, rows(), draw(D, seed=1)), "rms_norm")
    assert seen.only().parameters["eps_kind"] == kind
    nan = rewrite(fn, torch.full((2, D), math.nan), draw(D, seed=1)).result
    assert nan.isnan().all()


@pytest.mark.parametrize("name", [*RMS, *GUARDED])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_in_16_bits(name: str, dtype: torch.dtype) -> None:
    """Wholly in 16 bits: no worse than the graph, which rounds each step."""
    fn = RMS[name] if name in RMS else GUARDED[name][1]
    x, w = draw(2, 7, D, dtype=dtype), draw(D, dtype=dtype, seed=1)
    assert outcomes(check(fn, x, w)) == [("rms_norm", "rewritten")]


@pytest.mark.parametrize("name", LAYER)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layer_norm(name: str, dtype: torch.dtype) -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return LAYER[name](wide(x), wide(w), wide(b)).type_as(x)

    args = draw(2, 7, D, dtype=dtype), draw(D, dtype=dtype, seed=1), draw(D, dtype=dtype, seed=2)
    only(check(fn, *args), "layer_norm")


def test_a_layer_norm_by_hand_is_part_of_a_chain() -> None:
    def fn(x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        d = x - x.mean(-1, keepdim=True)
        return d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + E) * (1 + s), x

    seen = check(fn, draw(2, 7, D), draw(2, 7, D, seed=1), draw(2, 1, D, seed=2))
    only(seen, "residual_norm_modulate")


def test_a_centred_value_used_elsewhere_is_the_input_of_an_rms_norm() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        d = x - x.mean(-1, keepdim=True)
        return d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + E), d

    only(check(fn, draw(5, D)), "rms_norm")


NEAR: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "dims": (
        "rms_norm",
        "dims",
        lambda x: x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + E),
    ),
    "dims, by sqrt": (
        "rms_norm",
        "dims",
        lambda x: x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + E),
    ),
    "another input": (
        "rms_norm",
        "own input",
        lambda x: x.sin() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + E),
    ),
    "another statistic's shape": (
        "rms_norm",
        "one value for each row",
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + E)[:, None, :],
    ),
    "no eps": ("rms_norm", "no eps", lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))),
    "rounded root": (
        "rms_norm",
        "own input",
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + E).to(torch.float16).float(),
    ),
    "unbiased variance": (
        "layer_norm",
        "one less",
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + E),
    ),
    "length": ("rms_norm", "nothing multiplies it", lambda x: F.normalize(x, dim=-1)),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_near_miss_says_what_stopped_it(name: str) -> None:
    idiom, reason, fn = NEAR[name]
    x = draw(D, D, D)  # Square: sizes alone tell no dim from another.
    seen = rewrite(fn, x)
    site = seen.only()
    assert (site.idiom, site.outcome) == (idiom, "refused")
    assert reason in site.reason
    torch.testing.assert_close(seen.result, fn(x))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.rsqrt(x.abs() + E),
        lambda x: x.mean(-1).sqrt(),
        lambda x: x / (x.pow(2).sum() + E).sqrt(),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: (x.var(-1) + E).log(),
    ],
    ids=["rsqrt", "root of a mean", "length of all", "length", "variance"],
)
def test_other_roots_and_means_are_no_candidates(fn: Callable[[Tensor], Tensor]) -> None:
    assert not rewrite(fn, draw(3, 5, D).abs()).sites


def test_a_statistic_of_groups_is_not_one_of_rows() -> None:
    """x viewed as groups of 64 has another mean for each, though all sizes are equal."""

    def fn(x: Tensor) -> Tensor:
        groups = x.reshape(D, D // 2, 2, D).transpose(1, 2).reshape(D, D, D)
        return x * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + E)

    x = draw(D, D, D)
    seen = rewrite(fn, x)
    assert ("rms_norm", "rewritten") not in outcomes(seen)
    torch.testing.assert_close(seen.result, fn(x))


def test_one_weight_serves_two_norms() -> None:
    def gemma(x: Tensor, factor: Tensor) -> Tensor:
        return x * torch.rsqrt(ms(x) + E) * factor

    def fn(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        factor = 1 + w
        return gemma(x, factor), gemma(y, factor)

    seen = check(fn, draw(5, D), draw(5, D, seed=1), draw(D, seed=2))
    assert outcomes(seen) == [("rms_norm", "rewritten")] * 2


def test_weight_and_bias_may_be_one_tensor() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        return x * torch.rsqrt(ms(x) + E) * w + w

    only(check(fn, draw(5, D), draw(D, seed=1)), "rms_norm")


def test_a_statistic_rounded_in_a_float32_norm_is_another_value() -> None:
    def length(x: Tensor) -> Tensor:
        rounded = x.pow(2).sum(-1, keepdim=True).sqrt().to(BF16).float()
        return x / rounded.clamp_min(E) * math.sqrt(D)

    x = draw(5, D)
    seen = rewrite(length, x)
    assert outcomes(seen) == [("rms_norm", "refused")]
    assert "16 bits" in seen.only().reason
    torch.testing.assert_close(seen.result, length(x))
