"""Slices of joined videos, redirected to their piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.passes.slice_before_cat import slice_before_cat

aten = torch.ops.aten
CACHE, X, WEIGHT = (1, 3, 2, 4, 4), (1, 3, 5, 4, 4), (6, 3, 3, 1, 1)


def convolve(v: Tensor, w: Tensor) -> Tensor:
    return aten.convolution.default(
        v, w, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1
    )


def traced(function: Callable[..., tuple[Tensor, ...]]) -> tuple[fx.GraphModule, FakeTensorMode]:
    mode = FakeTensorMode()
    with mode:
        graph = make_fx(function)(
            *(torch.empty(s, dtype=torch.float64) for s in (CACHE, X, WEIGHT))
        )
    return graph, mode


def run(function: Callable[..., tuple[Tensor, ...]]) -> tuple[int, fx.Graph]:
    """How many slices were moved; the graph's results stay what they were, to the bit."""
    inputs = [torch.randn(s, dtype=torch.float64) for s in (CACHE, X, WEIGHT)]
    graph, mode = traced(function)
    moved = len(slice_before_cat(graph.graph, mode))
    graph.recompile()
    for ours, theirs in zip(graph(*inputs), function(*inputs), strict=True):
        assert torch.equal(ours, theirs)
    return moved, graph.graph


@pytest.mark.parametrize(
    ("start", "end"), [(-2, 2**63 - 1), (5, 7), (2, 7), (0, 2), (0, 1), (1, 2), (-7, -5)], ids=str
)
def test_frames_of_one_piece(start: int, end: int) -> None:
    def function(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = torch.cat([cache, x], 2)
        return convolve(v, w), aten.slice.Tensor(v, 2, start, end)

    moved, graph = run(function)
    assert moved == 1
    (cat,) = graph.find_nodes(op="call_function", target=aten.cat.default)
    assert [u.target for u in cat.users] == [aten.convolution.default]


@pytest.mark.parametrize(
    "sliced",
    [
        lambda v: aten.slice.Tensor(v, 2, 1, 4),
        lambda v: aten.slice.Tensor(v, 2, 0, 7),
        lambda v: aten.slice.Tensor(v, 2, 3, 7, 2),
        lambda v: aten.slice.Tensor(v, 2, 3, 3),
        lambda v: aten.slice.Tensor(v, 3, 0, 2),
        lambda v: aten.select.int(v, 2, 0),
    ],
    ids=["two pieces", "all", "every other", "none", "height", "select"],
)
def test_others_stay(sliced: Callable[[Tensor], Tensor]) -> None:
    def function(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = torch.cat([cache, x], 2)
        return convolve(v, w), sliced(v)

    assert run(function)[0] == 0


def test_without_a_convolution_nothing_is_gained() -> None:
    def function(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = torch.cat([cache, x], 2)
        return (v * 2, aten.slice.Tensor(v, 2, 5, 7))

    assert run(function)[0] == 0


def test_joined_in_height_is_no_video_in_pieces() -> None:
    def function(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = torch.cat([x, x], 3)
        return convolve(v, w), aten.slice.Tensor(v, 2, 0, 1)

    assert run(function)[0] == 0


@pytest.mark.parametrize(
    "beside",
    [lambda v: v, lambda v: v[:, :, :3], lambda v: v.flatten(2)],
    ids=["itself", "its frames", "flat"],
)
def test_outputs_that_share_the_joined_videos_memory_stay(
    beside: Callable[[Tensor], Tensor],
) -> None:
    def function(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = torch.cat([cache, x], 2)
        return convolve(v, w), v[:, :, -2:], beside(v)

    moved, _ = run(function)
    assert moved == 0
