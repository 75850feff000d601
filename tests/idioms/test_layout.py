"""Results that a channels-last graph must return contiguous, turned by the padding kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.idioms.layout import LEAST_TURNED, turn_results
from rocm_passes.ops import group_norm, pad  # noqa: F401  (defines the operator)
from rocm_passes.ops.conv3d.write import channels_last_strides

aten = torch.ops.aten
VIDEO, SMALL = (1, 64, 6, 96, 96), (1, 8, 4, 16, 16)


def run(function: Callable[..., Any], x: Tensor) -> tuple[int, fx.Graph]:
    """How many copies were replaced; results keep their values, to the bit, and their strides."""
    mode = FakeTensorMode()
    with mode:
        graph = make_fx(function)(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype))
    turned = turn_results(graph.graph, mode)
    graph.recompile()
    for ours, theirs in zip(graph(x), function(x), strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    return turned, graph.graph


def normed(x: Tensor, forced: bool = True) -> Tensor:
    """As `settle_norms` leaves a norm of a channels-last graph."""
    if forced:
        x = inductor_prims.force_stride_order(x, channels_last_strides(x.shape))
    return torch.ops.rocm_passes.group_norm(x, None, 2, None, None, 1e-6, False, None, None, False, x.dtype)


def contiguous(y: Tensor) -> Tensor:
    return aten.clone.default(y, memory_format=torch.contiguous_format)


def last_frames(x: Tensor) -> tuple[Tensor, ...]:
    y = normed(x)
    return contiguous(aten.slice.Tensor(y, 2, 2, 4)), y * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_frames_for_the_next_chunk(dtype: torch.dtype) -> None:
    turned, graph = run(last_frames, torch.randn(VIDEO).to(dtype))
    assert turned == 1
    (node,) = graph.find_nodes(op="call_function", target=pad.OPERATOR.overload)
    assert node.args[-2:] == (False, "triton")


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (last_frames, SMALL),
        (lambda x: (contiguous(normed(x, forced=False)),), VIDEO),
        (lambda x: (contiguous(normed(x)) * 2,), VIDEO),
        (lambda x: (aten.clone.default(normed(x)),), VIDEO),
        (lambda x: (contiguous(normed(x) * 2),), VIDEO),
    ],
    ids=["small", "a norm in no such layout", "not returned", "returned as it lies", "computed by Inductor"],
)
def test_others_stay_inductors(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    assert run(function, torch.randn(shape))[0] == 0


def test_the_bound_is_a_size() -> None:
    assert torch.Size(SMALL).numel() < LEAST_TURNED <= torch.Size(VIDEO).numel() // 3
