"""The bias of a convolution goes into the norm that alone reads it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.passes import fold_conv_bias as biases
from rocm_passes.passes.fold_conv_bias import fold_conv_bias
from tests.idioms.norm_cases import draw

C = 8


def channel(c: Tensor, lowering: str = "triton") -> Tensor:
    op = torch.ops.rocm_passes.channel_norm
    made: Tensor = op(
        c, None, None, None, "l2", 1e-12, 1.0, True, None, False, c.dtype, lowering=lowering
    )
    return made


def group(c: Tensor, lowering: str = "triton") -> Tensor:
    op = torch.ops.rocm_passes.group_norm
    made: Tensor = op(
        c, None, 4, None, None, 1e-6, True, None, None, False, c.dtype, lowering=lowering
    )
    return made


def traced(fn: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    mode = FakeTensorMode()
    with mode:
        return make_fx(fn)(*[mode.from_tensor(a) for a in args])


def inputs() -> tuple[Tensor, ...]:
    return draw(2, 4, 5, 6), draw(C, 4, 3, 3, seed=1), draw(C, seed=2)


def absorbed(fn: Callable[..., Any]) -> tuple[int, fx.GraphModule]:
    gm = traced(fn, *inputs())
    count = len(fold_conv_bias(gm.graph))
    gm.graph.lint()
    gm.recompile()
    return count, gm


def copied_group(c: Tensor) -> Tensor:
    """As F.group_norm has a channels-last tensor copied on a GPU."""
    return group(torch.ops.aten.clone.default(c, memory_format=torch.contiguous_format))


def assert_moved(fn: Callable[..., Any]) -> None:
    """The one convolution is left without its bias, and the values stay."""
    count, gm = absorbed(fn)
    assert count == 1
    (convolution,) = gm.graph.find_nodes(
        op="call_function", target=torch.ops.aten.convolution.default
    )
    assert convolution.args[2] is None
    args = inputs()
    torch.testing.assert_close(gm(*args), fn(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [channel, group, copied_group])
def test_moved(norm: Callable[..., Tensor]) -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return norm(F.conv2d(x, w, b))

    assert_moved(fn)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w, b: channel(F.conv2d(x, w)),
        lambda x, w, b: channel(F.conv2d(x, w, b), "reference"),
        lambda x, w, b: channel(F.conv2d(x, w, b).relu()),
        lambda x, w, b: (lambda c: (channel(c), c))(F.conv2d(x, w, b)),
        lambda x, w, b: (lambda c: (channel(c), c))(F.conv2d(x, w, b).clone()),
        lambda x, w, b: (lambda c: (channel(c.clone()), c))(F.conv2d(x, w, b)),
    ],
    ids=[
        "no bias",
        "another lowering",
        "something between",
        "read elsewhere",
        "its copy is",
        "it is, but copied",
    ],
)
def test_left_alone(fn: Callable[..., Any]) -> None:
    count, gm = absorbed(fn)
    assert count == 0
    args = inputs()
    torch.testing.assert_close(gm(*args), fn(*args))


def test_the_position_of_the_bias_is_the_schema_s() -> None:
    schema = torch.ops.aten.convolution.default._schema
    assert schema.arguments[biases._BIAS].name == "bias"


def test_moved_through_the_views_that_make_frames_a_video() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        frames = torch.ops.aten.convolution.default(
            x, w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
        )
        return channel(frames.unsqueeze(0).permute(0, 2, 1, 3, 4))

    count, gm = absorbed(fn)
    assert count == 1
    (convolution,) = gm.graph.find_nodes(
        op="call_function", target=torch.ops.aten.convolution.default
    )
    assert convolution.args[2] is None
    torch.testing.assert_close(gm(*inputs()), fn(*inputs()))


def added(c: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return channel(c), (c + r).relu()


def copied(c: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return copied_group(c), c * r


@pytest.mark.parametrize("readers", [added, copied])
def test_pointwise_code_may_read_it_too(readers: Callable[..., Any]) -> None:
    """The sum is written for it, which Inductor fuses; no pass over memory is left for the bias."""

    def fn(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return readers(F.conv2d(x, w, b), x[:, :1, :3, :4])

    assert_moved(fn)


def test_pointwise_code_may_read_the_video() -> None:
    """As behind Wan's upsamplers: frames in a batch, read as a video."""

    def fn(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        frames = F.conv2d(x, w, b)
        video = frames.reshape(1, *frames.shape).permute(0, 2, 1, 3, 4)
        return channel(video), video + 1

    count, gm = absorbed(fn)
    assert count == 1
    args = inputs()
    torch.testing.assert_close(gm(*args), fn(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w, b: (lambda c: (channel(c), c.sum(), c + 1))(F.conv2d(x, w, b)),
        lambda x, w, b: (lambda c: (channel(c), F.conv2d(c, w[:, :1].repeat(1, 8, 1, 1)[..., :1])))(
            F.conv2d(x, w, b)
        ),
        lambda x, w, b: (lambda c: (channel(c), group(c)))(F.conv2d(x, w, b)),
        lambda x, w, b: (lambda c: (channel(c), c + 1))(
            F.conv2d(x, w, b).reshape(2, 8, 12).permute(0, 1, 2).reshape(2, 8, 3, 4)
        ),
    ],
    ids=["a reduction", "a convolution", "another norm", "another view"],
)
def test_left_to_inductor_for_other_readers(fn: Callable[..., Any]) -> None:
    count, gm = absorbed(fn)
    assert count == 0
    args = inputs()
    torch.testing.assert_close(gm(*args), fn(*args))


def test_another_permutation_is_no_video() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        frames = torch.ops.aten.convolution.default(
            x, w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
        )
        return channel(frames.unsqueeze(0).permute(0, 1, 2, 3, 4))

    assert absorbed(fn)[0] == 0
