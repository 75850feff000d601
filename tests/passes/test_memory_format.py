"""One layout for all that read a tensor: requests for channels-last are shared, and followed by who
did not ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.ops import group_norm
from rocm_passes.passes.memory_format import FORCE, settle_norms, share_layouts

SHAPE = (2, 3, 4, 5)
LAST, FIRST = [60, 1, 15, 3], [60, 20, 5, 1]


def last(x: Tensor) -> Tensor:
    forced: Tensor = inductor_prims.force_stride_order(x, LAST)
    return forced


def run(function: Callable[[Tensor], Any]) -> tuple[int, fx.Graph]:
    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(torch.empty(SHAPE, dtype=torch.float64))
    redirected = sum(c.parameters["readers"] for c in share_layouts(gm.graph))
    gm.graph.lint()
    gm.recompile()
    x = torch.randn(SHAPE, dtype=torch.float64)
    for ours, theirs in zip(gm(x), function(x), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    return redirected, gm.graph


def requests(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="call_function", target=FORCE))


def test_two_requests_are_one() -> None:
    """As of a norm and of the shortcut convolution beside it."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return last(y).cos(), last(y).exp()

    redirected, graph = run(function)
    (request,) = requests(graph)
    assert redirected == 2
    assert len(request.users) == 2


def test_who_did_not_ask_reads_it_there() -> None:
    """A residual, which would add the bias once more and keep what is before it alive."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return (last(y).cos() + y,)

    redirected, graph = run(function)
    (request,) = requests(graph)
    assert redirected == 1
    assert {user.name for user in request.users} == {"cos", "add"}


def test_what_leaves_the_graph_leaves_as_it_was() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return last(y).cos(), y

    assert run(function)[0] == 0


def test_the_graphs_inputs_lie_as_they_do() -> None:
    """Two requests of one are shared; another reader keeps to the input."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return last(x).cos(), last(x).exp(), x.sin()

    redirected, graph = run(function)
    (request,) = requests(graph)
    assert redirected == 1
    assert {user.name for user in request.users} == {"cos", "exp"}


def test_other_layouts_are_kept_apart() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return last(y).cos(), inductor_prims.force_stride_order(y, FIRST).exp()

    _, graph = run(function)
    assert [request.args[1] for request in requests(graph)] == [LAST, FIRST]


def test_a_norm_reads_what_was_copied_for_it_where_the_others_read_it() -> None:
    """ATen's GroupNorm has a channels-last tensor copied on a GPU; a shortcut convolution beside it
    has it as it is.
    """

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        copy = torch.ops.aten.clone.default(y, memory_format=torch.contiguous_format)
        normed = group_norm.GROUP_NORM.overload(
            copy,
            None,
            3,
            None,
            None,
            1e-6,
            False,
            None,
            None,
            False,
            torch.float64,
            lowering="reference",
        )
        return normed.exp(), last(y).cos()

    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(torch.empty(SHAPE, dtype=torch.float64))
    assert len(settle_norms(gm.graph, mode)) == 1
    gm.graph.eliminate_dead_code()
    share_layouts(gm.graph)
    gm.graph.lint()
    gm.recompile()
    (request,) = requests(gm.graph)
    readers = {user.target for user in request.users}
    assert readers == {torch.ops.aten.cos.default, group_norm.GROUP_NORM.overload}
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    x = torch.randn(SHAPE, dtype=torch.float64)
    for ours, theirs in zip(gm(x), function(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_outputs_that_share_memory_go_on_sharing_it() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return y, y[:1], last(y).cos()

    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(torch.empty(SHAPE, dtype=torch.float64))
    share_layouts(gm.graph)
    gm.recompile()
    whole, part, _ = gm(torch.randn(SHAPE, dtype=torch.float64))
    assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4, 5, 2, 2), (7,)], ids=str)
def test_tensors_that_no_channels_last_format_is_for(shape: tuple[int, ...]) -> None:
    """A reader of strides has one asked for in another layout (seed 1002022)."""
    strides = torch.empty(shape[::-1]).permute(*range(len(shape) - 1, -1, -1)).stride()
    mode = FakeTensorMode()
    with mode:
        gm = make_fx(lambda x: (inductor_prims.force_stride_order(x * 2, list(strides)) + x * 2,))(
            torch.empty(shape)
        )
    before = str(gm.graph)
    assert share_layouts(gm.graph) == [] and str(gm.graph) == before


def test_a_norm_of_six_dims_is_left_as_it_lies() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        op = torch.ops.rocm_passes.channel_norm
        y = op(x * 2, None, None, None, "l2", 1e-12, 1.0, True, None, False, x.dtype)
        return (y,)

    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(torch.empty(2, 3, 2, 2, 2, 2))
    before = str(gm.graph)
    assert settle_norms(gm.graph, mode) == [] and str(gm.graph) == before
