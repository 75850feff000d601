"""Whether the host is sure to be done with its launches before the device is with their work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.policy.bounds import CALL_HOST_SECONDS, FASTEST_MATRIX_RATE
from rocm_passes.rewrite import host_time

#: Operations of one call behind which the host is hidden.
ENOUGH = FASTEST_MATRIX_RATE.value * CALL_HOST_SECONDS.value


def graph_of(fn: Callable[..., Any], *shapes: tuple[int, ...], mode: str = "fake") -> fx.Graph:
    inputs = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    return make_fx(fn, tracing_mode=mode)(*inputs).graph


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.linear(x, w, b))


def heavy(graph: fx.Graph) -> list[int]:
    return [host_time.operations(node) for node in graph.nodes if host_time.is_heavy(node)]


def test_a_matrix_product_is_counted() -> None:
    assert heavy(graph_of(linear, (64, 32), (16, 32), (16,))) == [2 * 64 * 32 * 16]


def test_a_convolution_is_counted() -> None:
    graph = graph_of(lambda x, w: F.conv2d(x, w, padding=1), (1, 4, 8, 8), (6, 4, 3, 3))
    assert heavy(graph) == [2 * 8 * 8 * 6 * 4 * 9]


def test_attention_is_counted() -> None:
    shape = (1, 2, 32, 16)
    graph = graph_of(lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v)[0], shape, shape, shape)  # fmt: skip
    assert heavy(graph) in ([4 * 2 * 32 * 32 * 16], [])  # A kernel torch has no formula for.
    graph = graph_of(lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, False)[0], shape, shape, shape)  # fmt: skip
    assert heavy(graph) == [4 * 2 * 32 * 32 * 16]


@pytest.mark.parametrize(("share", "expected"), [(0.9, False), (1.1, True)])
def test_the_bound_is_that_of_the_table(share: float, expected: bool) -> None:
    """A product of n x n matrices takes 2 n^3 operations."""
    n = round((share * ENOUGH / 2) ** (1 / 3))
    assert host_time.is_hidden(graph_of(torch.mm, (n, n), (n, n))) == expected


def test_each_call_needs_the_host() -> None:
    n = math.ceil((1.1 * ENOUGH / 2) ** (1 / 3))

    def with_small_ones(x: Tensor, y: Tensor, small: Tensor) -> list[Tensor]:
        return [x @ y, small @ small]

    assert not host_time.is_hidden(graph_of(with_small_ones, (n, n), (n, n), (8, 8)))


def test_a_graph_without_such_calls_hides_nothing() -> None:
    assert not host_time.is_hidden(graph_of(lambda x: x + 1, (4096, 4096)))


def test_symbolic_sizes_are_not_known() -> None:
    n = 4 * math.ceil((ENOUGH / 2) ** (1 / 3))
    graph = graph_of(torch.mm, (n, n), (n, n), mode="symbolic")
    assert heavy(graph) == [0]
    assert not host_time.is_hidden(graph)
