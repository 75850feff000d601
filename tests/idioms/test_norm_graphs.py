"""Graphs before and after, for the norms of rows: tests/golden/norms/<idiom>.txt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from rocm_passes.idioms.norms import reading
from rocm_passes.options import Options
from rocm_passes.rewrite.match import Context
from tests import golden_graphs
from tests.idioms.norm_cases import BF16, draw, use_reference
from tests.rewriting import rewrite
from tests.without_codegen import without_codegen

D = 64


@pytest.fixture(autouse=True)
def only_the_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_reference(monkeypatch)
    with without_codegen():
        yield


def rms(x: Tensor, w: Tensor) -> Tensor:
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype) * w


def layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), eps=1e-6)


CASES: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "rms_norm": lambda x, y, t: rms(x, t[0, 0]),
    "layer_norm": lambda x, y, t: layer(x.float()).to(x.dtype),
    "norm_modulate": lambda x, y, t: layer(x) * (1 + t) + t,
    "residual_norm": lambda x, y, t: (lambda s: (s, rms(s, t[0, 0])))(x + y),
    "residual_norm_modulate": lambda x, y, t: (lambda s: (s, layer(s) * (1 + t)))(x + t * y),
    "norm_residual": lambda x, y, t: x + t * rms(y, t[0, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    args = (
        draw(2, 5, D, dtype=BF16),
        draw(2, 5, D, dtype=BF16, seed=1),
        draw(2, 1, D, dtype=BF16, seed=2),
    )
    golden_graphs.check(rewrite(CASES[name], *args), "norms", name)


def test_all_idioms_of_the_family_read_a_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[fx.Graph] = []
    original = Context.read_once

    def counting(self: Context, graph: fx.Graph, reader: Callable[..., Any]) -> Any:
        if reader is reading._read and (graph, reader) not in self._read:
            read.append(graph)
        return original(self, graph, reader)

    monkeypatch.setattr(Context, "read_once", counting)
    rewrite(
        CASES["residual_norm_modulate"], draw(2, 5, D), draw(2, 5, D, seed=1), draw(2, 1, D, seed=2)
    )
    assert len(read) == 1
    assert Context(Options())._read == {}
