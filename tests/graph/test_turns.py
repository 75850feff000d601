"""Copies from one memory layout to the other, done by the padding kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.graph.turns import LEAST, turn_by_kernel
from rocm_passes.ops import group_norm, pad  # noqa: F401  (defines the operator)
from rocm_passes.ops.conv3d.write import channels_last_strides

aten = torch.ops.aten
VIDEO, IMAGE, SMALL = (1, 64, 4, 64, 64), (1, 64, 128, 128), (1, 8, 2, 32, 32)


def run(function: Callable[..., Any], *inputs: Tensor) -> tuple[int, fx.Graph]:
    """How many copies were replaced; results keep their values, to the bit, and their strides."""
    mode = FakeTensorMode()
    with mode:
        fakes = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in inputs]
        graph = make_fx(function)(*fakes)
    turned = turn_by_kernel(graph.graph, mode)
    graph.recompile()
    for ours, theirs in zip(graph(*inputs), function(*inputs), strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    return turned, graph.graph


def forced(x: Tensor) -> Tensor:
    return inductor_prims.force_stride_order(x, channels_last_strides(x.shape))


def normed(x: Tensor) -> Tensor:
    return torch.ops.rocm_passes.group_norm(x, None, 2, None, None, 1e-6, False, None, None, False, x.dtype)


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)


@pytest.mark.parametrize("shape", [VIDEO, IMAGE], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_input_asked_for_channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    turned, graph = run(lambda x: (forced(x) * 2,), torch.randn(shape).to(dtype))
    assert turned == 1
    (node,) = graph.find_nodes(op="call_function", target=pad.OPERATOR.overload)
    assert node.args[-2:] == (True, "triton")


def test_a_result_that_goes_out_contiguous() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = normed(x)
        return aten.slice.Tensor(y, 2, 2, 4).clone(memory_format=torch.contiguous_format), y * 2

    def spelled(x: Tensor) -> tuple[Tensor, ...]:
        y = normed(x)
        kept = aten.slice.Tensor(y, 2, 2, 4)
        return aten.clone.default(kept, memory_format=torch.contiguous_format), y * 2

    for form in (function, spelled):
        turned, graph = run(form, last(torch.randn(1, 64, 6, 96, 96)))
        assert turned == 1
        (node,) = graph.find_nodes(op="call_function", target=pad.OPERATOR.overload)
        assert node.args[-2:] == (False, "triton")


def _computed(x: Tensor) -> tuple[Tensor, ...]:
    return (aten.clone.default(x * 2, memory_format=torch.contiguous_format),)


def _inner(x: Tensor) -> tuple[Tensor, ...]:
    return (aten.clone.default(normed(x), memory_format=torch.contiguous_format) * 2,)


def _same_layout(x: Tensor) -> tuple[Tensor, ...]:
    return (aten.clone.default(normed(x)),)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: (forced(x),), torch.randn(SMALL)),
        (lambda x: (forced(x * 2),), torch.randn(VIDEO)),
        (lambda x: (forced(x),), last(torch.randn(VIDEO))),
        (lambda x: (forced(x),), torch.randn(512, 512, 3, 3)),
        (lambda x: (forced(x),), torch.randn(1, 1, 1200, 1200)),
        (_computed, last(torch.randn(VIDEO))),
        (_inner, last(torch.randn(VIDEO))),
        (_same_layout, last(torch.randn(VIDEO))),
    ],
    ids=[
        "small", "computed, then turned", "channels-last already", "a weight", "one channel",
        "computed, then returned", "not returned", "returned as it lies",
    ],
)  # fmt: skip
def test_others_stay_inductors(function: Callable[..., Any], x: Tensor) -> None:
    assert run(function, x)[0] == 0


def test_the_bound_is_a_size() -> None:
    assert torch.Size(SMALL).numel() < LEAST <= torch.Size(VIDEO).numel()


def test_a_slice_whose_value_dates_from_before_the_rewrites() -> None:
    """Slices keep the value that they had when the graph was contiguous; what they read tells its layout."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = normed(x)
        return aten.clone.default(aten.slice.Tensor(y, 2, 2, 4), memory_format=torch.contiguous_format), y * 2

    mode = FakeTensorMode()
    x = last(torch.randn(1, 64, 6, 96, 96))
    with mode:
        graph = make_fx(function)(torch.empty_strided(x.shape, x.stride()))
        (sliced,) = graph.graph.find_nodes(op="call_function", target=aten.slice.Tensor)
        sliced.meta["val"] = torch.empty(sliced.meta["val"].shape)
    assert turn_by_kernel(graph.graph, mode) == 1
