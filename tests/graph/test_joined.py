"""Norms that write behind the frames in front of them, and the cats that this spares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.graph.joined import OPERATORS, absorb_joins
from rocm_passes.idioms.padding import stands_behind_frames
from rocm_passes.ops.conv3d.write import CHANNELS_BEHIND, CHANNELS_FIRST
from tests.graph.test_biases import channel, group

aten = torch.ops.aten
FRONT, X = (1, 4, 2, 3, 3), (1, 4, 5, 3, 3)


def joined(*pieces: Tensor) -> Tensor:
    return torch.cat(pieces, 2)


def joined_channels_behind(*pieces: Tensor) -> Tensor:
    """As conv3d's lowerings spell it where the video is channels-last: small pieces are laid out first."""
    *small, last = pieces
    laid_out = [inductor_prims.force_stride_order(p, [p.shape[2] * 36, 1, 36, 12, 4]) for p in small]
    return aten.cat.default([p.permute(CHANNELS_BEHIND) for p in (*laid_out, last)], 1).permute(
        CHANNELS_FIRST
    )


SPELLINGS = (joined, joined_channels_behind)


def run(function: Callable[..., Any]) -> tuple[dict[fx.Node, int], fx.Graph]:
    """What was absorbed; the results stay what they were, to the bit (the operators' references run)."""
    inputs = [torch.randn(s, dtype=torch.float64) for s in (FRONT, X)]
    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(*(torch.empty(s, dtype=torch.float64) for s in (FRONT, X)))
    found = absorb_joins(gm.graph, mode)
    gm.graph.lint()
    gm.recompile()
    for ours, theirs in zip(gm(*inputs), function(*inputs), strict=True):
        assert torch.equal(ours, theirs)
    return found, gm.graph


def count(graph: fx.Graph, target: Any) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("norm", [channel, group])
def test_behind_cached_frames(norm: Callable[..., Tensor], spelling: Callable[..., Tensor]) -> None:
    """The whole video is the norm's result, and whatever read the norm alone reads it there."""

    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = norm(x)
        return spelling(front, y).sin(), y[:, :, -2:].clone(), y.cos()

    found, graph = run(function)
    assert list(found.values()) == [2]
    assert count(graph, aten.cat.default) == 0
    (node,) = [n for n in graph.nodes if n.target in OPERATORS]
    given = dict(zip(OPERATORS[node.target].parameters, node.args, strict=False))
    assert given["front"].op == "placeholder"
    assert tuple(node.meta["val"].shape) == (1, 4, 7, 3, 3)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("norm", [channel, group])
@pytest.mark.parametrize("times", [1, 3])
def test_behind_its_own_first_frame(
    times: int, norm: Callable[..., Tensor], spelling: Callable[..., Tensor]
) -> None:
    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = norm(x)
        return spelling(*[y[:, :, :1]] * times, y).sin(), y[:, :, -2:].clone()

    found, graph = run(function)
    assert list(found.values()) == [times]
    assert count(graph, aten.cat.default) == 0


def later(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    y = channel(x)
    return (joined(front * y.sum(), y).sin(),)


def into_two(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    y = channel(x)
    return joined(front, y).sin(), joined(front, y).cos()


def last_frame(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    y = channel(x)
    return (joined(y[:, :, -1:], y).sin(),)


def of_another(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    y = channel(x)
    return (joined(x[:, :, :1], front, y).sin(),)


def behind(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(channel(x), front).sin(),)


def along_height(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (torch.cat([x, channel(x)], 3).sin(),)


def by_the_reference(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(front, channel(x, "reference")).sin(),)


def widened(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(front, channel(x.float())).sin(),)


@pytest.mark.parametrize(
    "function", [later, into_two, last_frame, of_another, behind, along_height, by_the_reference, widened]
)
def test_left_alone(function: Callable[..., Any]) -> None:
    found, graph = run(function)
    assert found == {}
    assert count(graph, aten.cat.default) >= 1


def behind_zeros(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(torch.zeros_like(front), channel(x)).sin(),)


def behind_zeros_and_frames(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(torch.zeros_like(front), front, channel(x)).sin(),)


def behind_frames(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (joined(front, channel(x)).sin(),)


def behind_its_own(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    y = channel(x)
    return (joined(y[:, :, :1], y[:, :, :1], y).sin(),)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (behind_frames, True),
        (behind_zeros_and_frames, True),
        (behind_its_own, True),
        (behind_zeros, False),
        (into_two, False),
        (of_another, False),
        (behind, False),
    ],
)
def test_the_rule_counts_on_no_more_than_the_pass_does(function: Callable[..., Any], expected: bool) -> None:
    """Zeros become the convolution's own; of two videos the norm could be written into neither."""
    with FakeTensorMode():
        gm = make_fx(function)(*(torch.empty(s, dtype=torch.float64) for s in (FRONT, X)))
    (norm,) = [node for node in gm.graph.nodes if node.target in OPERATORS]
    assert stands_behind_frames(norm) is expected


def test_behind_frames_already() -> None:
    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        op = torch.ops.rocm_passes.channel_norm
        y = op(x, None, None, None, "l2", 1e-12, 2.0, True, None, False, x.dtype, front, 0, "triton")
        return (joined(front, y).sin(),)

    assert run(function)[0] == {}
