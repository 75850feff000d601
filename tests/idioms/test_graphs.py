"""Graphs before and after, for each idiom but the norms of rows: tests/golden/<family>/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.registry import idiom_names
from tests import golden_graphs
from tests.idioms.norm_cases import BF16, draw, use_reference
from tests.idioms.rotary_spellings import SPELLINGS as ROTATIONS
from tests.idioms.rotary_spellings import example, p1
from tests.rewriting import rewrite
from tests.without_codegen import without_codegen

aten = torch.ops.aten
C = 8


@dataclass(frozen=True)
class Case:
    """One site. lowering: what writes it, where the first that can is not meant."""

    family: str
    fn: Callable[..., Any]
    args: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)


def group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 4, w, b, 1e-6))


def channel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(F.normalize(x, dim=1) * C**0.5 * gamma)


def replicated(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"), kernel)


def upsampled(z: Tensor, w: Tensor) -> Tensor:
    return F.conv3d(F.interpolate(z, scale_factor=(1, 2, 2)), w)


def cached(cache: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return F.conv3d(F.pad(torch.cat([cache, x], 2), (1, 1, 1, 1, 0, 0)), w)


def transposed(x: Tensor, w: Tensor) -> Tensor:
    return F.conv_transpose2d(x, w, stride=2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def gelu_of_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.linear(x, w, b))


def both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return p1(q, cos, sin), p1(k, cos, sin)


def normed(q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (F.rms_norm(x, (x.shape[-1],), w, 1e-6) for x in (q, k))
    return both(q, k, cos, sin)


def heads(seed: int = 0) -> Tensor:
    return draw(2, 7, 3, 16, dtype=BF16, seed=seed)


_, *TABLES = example(ROTATIONS[0], 2, 7, 3, 16, BF16).args
VIDEO = draw(1, C, 3, 4, 5, dtype=BF16)

CASES: dict[str, Case] = {
    "group_norm": Case("norms", group_norm, (VIDEO, draw(C, dtype=BF16), draw(C, dtype=BF16))),
    "group_norm_pad": Case(
        "norms",
        lambda x, w, b, kernel: replicated(group_norm(x, w, b), kernel),
        (VIDEO, draw(C, dtype=BF16), draw(C, dtype=BF16), draw(4, C, 3, 3, 3, dtype=BF16)),
        {"idioms": "group_norm_pad"},
    ),
    "channel_norm": Case("norms", channel_norm, (VIDEO, draw(C, 1, 1, 1, dtype=BF16))),
    "rotary": Case("rotary", p1, (heads(), *TABLES)),
    "rotary_pair": Case("rotary", both, (heads(), heads(1), *TABLES)),
    "qk_norm_rotary": Case("rotary", normed, (heads(), heads(1), draw(16, dtype=BF16), *TABLES)),
    "upsampled_conv": Case(
        "convolution",
        upsampled,
        (VIDEO, draw(4, C, 1, 1, 1, dtype=BF16)),
        {"idioms": "upsampled_conv"},
    ),
    "conv3d": Case(
        "convolution",
        cached,
        (draw(1, C, 2, 4, 5), VIDEO.float(), draw(4, C, 3, 3, 3)),
        {"lowering": {"conv3d": "taps"}, "layout": "as_is"},
    ),
    "conv2d": Case(
        "convolution",
        lambda x, w: F.conv2d(x, w, padding=1),
        (draw(1, C, 4, 5), draw(C, C, 3, 3)),
        {"layout": "channels_last"},
    ),
    "conv_transposed": Case(
        "convolution",
        transposed,
        (draw(1, 6, 3, 4), draw(6, 5, 2, 2)),
        {"lowering": {"conv_transposed": "matmul"}},
    ),
    "pad": Case(
        "convolution",
        replicated,
        (VIDEO, draw(4, C, 3, 3, 3, dtype=BF16)),
        {"idioms": "pad"},
    ),
    "attention": Case(
        "attention",
        attention,
        (draw(1, 2, 8, 16), draw(1, 2, 8, 16, seed=1), draw(1, 2, 8, 16, seed=2)),
        {"lowering": {"attention": "chunked"}},
    ),
    "gated_activation": Case(
        "activation",
        lambda gate, x: F.silu(gate) * x,
        (draw(2, 16, dtype=BF16), draw(2, 16, dtype=BF16, seed=1)),
    ),
    "linear_gelu": Case("activation", gelu_of_linear, (draw(4, 16), draw(8, 16), draw(8))),
}


@pytest.fixture(autouse=True)
def only_the_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_reference(monkeypatch)
    with without_codegen():
        yield


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    case = CASES[name]
    golden_graphs.check(rewrite(case.fn, *case.args, options=case.options), case.family, name)


def test_every_idiom_has_its_graphs() -> None:
    files = {file.stem for file in golden_graphs.FOLDER.rglob("*.txt")}
    assert files == set(idiom_names())
