"""Convolutions in front of a depth-to-space, their channels sorted: the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.idioms.convolution.videos import SORTED_BY
from rocm_passes.passes.sort_depth_to_space import sort_channels

C = 32
VIDEO = ((2, 3, 4, 5, 6), (8 * C, 3, 3, 3, 3), (8 * C,))
IMAGE = ((2, 3, 5, 6), (4 * C, 3, 3, 3), (4 * C,))


def upsampled(y: Tensor, *, factors: tuple[int, int, int] = (2, 2, 2)) -> Tensor:
    """As LTX-Video's upsampler has it."""
    n, _, t, h, w = y.shape
    y = y.reshape(n, -1, *factors, t, h, w)
    return (
        y.permute(0, 1, 5, 2, 6, 3, 7, 4)
        .flatten(6, 7)
        .flatten(4, 5)
        .flatten(2, 3)[:, :, factors[0] - 1 :]
    )


def ltx(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return upsampled(F.conv3d(x, w, bias, padding=1))


def without_bias(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return upsampled(F.conv3d(x, w, None, padding=1))


def in_space_alone(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return upsampled(F.conv3d(x, w, bias, padding=1), factors=(1, 2, 2))


def pixel_shuffle(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return F.pixel_shuffle(F.conv2d(x, w, bias, stride=2), 2)


def run(
    function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], last: bool = True
) -> tuple[int, fx.Graph]:
    inputs = [torch.randn(s, dtype=torch.float64) for s in shapes]
    mode = FakeTensorMode()
    with mode:
        empty = [torch.empty(s, dtype=torch.float64) for s in shapes]
        gm = make_fx(function, decomposition_table=select_decomp_table())(*empty)
    done = len(sort_channels(gm.graph, mode, lambda node: last))
    gm.graph.lint()
    gm.recompile()
    torch.testing.assert_close(gm(*inputs), function(*inputs), rtol=1e-12, atol=1e-12)
    return done, gm.graph


@pytest.mark.parametrize(
    ("function", "shapes", "pixels"),
    [
        (ltx, VIDEO, 8),
        (without_bias, VIDEO, 8),
        (in_space_alone, VIDEO, 4),
        (pixel_shuffle, IMAGE, 4),
    ],
)
def test_sorted(
    function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], pixels: int
) -> None:
    done, graph = run(function, shapes)
    assert done == 1
    (convolution,) = graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    assert convolution.meta[SORTED_BY] == pixels
    assert [node.op for node in convolution.all_input_nodes].count("placeholder") == 1


def test_what_several_read_is_written_out_once() -> None:
    def function(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = ltx(x, w, bias)
        return y.sin(), y.cos()

    force = torch.ops.prims.inductor_force_stride_order.default
    (written,) = run(function, VIDEO)[1].find_nodes(op="call_function", target=force)
    assert list(written.args[1]) == [C * 7 * 10 * 12, 1, C * 10 * 12, C * 12, C]
    assert len(written.users) == 2
    assert run(ltx, VIDEO)[1].find_nodes(op="call_function", target=force) == []


def read_twice(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y = F.conv3d(x, w, bias, padding=1)
    return upsampled(y), y.sin()


def split_read_twice(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    z = F.conv3d(x, w, bias, padding=1).reshape(2, C, 2, 2, 2, 4, 5, 6)
    return z.permute(0, 1, 5, 2, 6, 3, 7, 4), z.sin()


def no_permutation(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, w, bias, padding=1).reshape(2, C, 2, 2, 2, 4, 5, 6).sin()


def channels_elsewhere(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return (
        F.conv3d(x, w, bias, padding=1)
        .reshape(2, C, 2, 2, 2, 4, 5, 6)
        .permute(0, 2, 1, 3, 4, 5, 6, 7)
    )


def no_split(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, w, bias, padding=1).reshape(2, 8 * C, 4, 30).permute(0, 1, 3, 2)


def grouped(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return upsampled(F.conv3d(x.repeat(1, 2, 1, 1, 1), w, bias, padding=1, groups=2))


def transposed(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return upsampled(F.conv_transpose3d(x, w.transpose(0, 1), bias))


@pytest.mark.parametrize(
    "function",
    [
        read_twice,
        split_read_twice,
        no_permutation,
        channels_elsewhere,
        no_split,
        grouped,
        transposed,
    ],
)
def test_left_alone(function: Callable[..., Any]) -> None:
    assert run(function, VIDEO)[0] == 0


def test_short_runs_are_left_alone() -> None:
    """To pixels of three channels: the graph's order is as good."""
    assert run(ltx, (VIDEO[0], (8 * 3, 3, 3, 3, 3), (8 * 3,)))[0] == 0


def test_contiguous_convolutions_are_left_alone() -> None:
    assert run(ltx, VIDEO, last=False)[0] == 0
