"""Upsampling is read off what is gathered, whatever its spelling; what is none of it is left as it
is.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.idioms.convolution import upsampling
from tests.idioms.norm_cases import draw


def twice(size: int) -> Tensor:
    """0 0 1 1 2 2 ..."""
    return torch.arange(0, size, 0.5).to(torch.int64)


def read(fn: Callable[[Tensor], Tensor], *shape: int) -> upsampling.Upsampled:
    gm = make_fx(fn, tracing_mode="fake", decomposition_table={})(draw(*shape))
    (output,) = gm.graph.find_nodes(op="output")
    return upsampling.read(output.args[0])


@pytest.mark.parametrize(
    ("fn", "shape", "repeats"),
    [
        (lambda x: x[:, :, twice(3)[:, None], twice(4)], (1, 2, 3, 4), (2, 2)),
        (lambda x: x[:, :, :, twice(3)], (1, 2, 5, 3, 4), (1, 2, 1)),
        (
            lambda x: torch.cat([x[:, :, :1], x[:, :, 1:][:, :, twice(2)]], 2),
            (1, 2, 3, 4, 4),
            (2, 1, 1),
        ),
    ],
    ids=["rows and columns", "rows", "every frame but the first"],
)
def test_repeats(
    fn: Callable[[Tensor], Tensor], shape: tuple[int, ...], repeats: tuple[int, ...]
) -> None:
    found = read(fn, *shape)
    assert found.source.op == "placeholder"
    assert (found.repeats, found.skipped) == (repeats, int(shape[2] == 3 and len(shape) == 5))


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (lambda x: x[:, :, twice(3)[None]], (1, 2, 3, 4)),
        (lambda x: x[:, :, twice(3) % 3], (1, 2, 3, 4)),
        (lambda x: x[:, twice(2)], (1, 2, 3, 4)),
        (lambda x: torch.cat([x[:, :, :, twice(3)], x[:, :, :, twice(3)]], 3), (1, 2, 5, 3, 4)),
    ],
    ids=["a new dim", "numbers of another kind", "channels", "cat of rows"],
)
def test_no_upsampling(fn: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    found = read(fn, *shape)
    assert found.source.op == "call_function"
    assert set(found.repeats) == {1}
