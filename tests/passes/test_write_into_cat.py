"""Norms that write behind the frames in front of them, and the cats that this spares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx.builder import fake_mode_of
from rocm_passes.idioms.convolution.padding import stands_behind_frames
from rocm_passes.ops.frames import CHANNELS_BEHIND, CHANNELS_FIRST
from rocm_passes.passes.write_into_cat import OPERATORS, write_into_cat
from rocm_passes.report.ledger import Entry
from rocm_passes.target import triton_is_interpreted
from tests.passes.test_fold_conv_bias import channel, group
from tests.rewriting import rewrite

aten = torch.ops.aten
FRONT, X = (1, 4, 2, 3, 3), (1, 4, 5, 3, 3)


def joined(*pieces: Tensor) -> Tensor:
    return torch.cat(pieces, 2)


def joined_channels_behind(*pieces: Tensor) -> Tensor:
    """As conv3d's lowerings spell it where the video is channels-last: small pieces are laid out
    first.
    """
    *small, last = pieces
    laid_out = [
        inductor_prims.force_stride_order(p, [p.shape[2] * 36, 1, 36, 12, 4]) for p in small
    ]
    return aten.cat.default([p.permute(CHANNELS_BEHIND) for p in (*laid_out, last)], 1).permute(
        CHANNELS_FIRST
    )


SPELLINGS = (joined, joined_channels_behind)


def run(function: Callable[..., Any]) -> tuple[dict[fx.Node, int], list[str], fx.Graph]:
    """What was absorbed and why others were not; the results stay what they were, to the bit (the
    operators' references run).
    """
    inputs = [torch.randn(s, dtype=torch.float64) for s in (FRONT, X)]
    mode = FakeTensorMode()
    with mode:
        gm = make_fx(function)(*(torch.empty(s, dtype=torch.float64) for s in (FRONT, X)))
    found, left = write_into_cat(gm.graph, mode)
    assert found.keys().isdisjoint(left)
    gm.graph.lint()
    gm.recompile()
    for ours, theirs in zip(gm(*inputs), function(*inputs), strict=True):
        assert torch.equal(ours, theirs)
    return found, list(left.values()), gm.graph


def count(graph: fx.Graph, target: Any) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("norm", [channel, group])
def test_behind_cached_frames(norm: Callable[..., Tensor], spelling: Callable[..., Tensor]) -> None:
    """The whole video is the norm's result, and whatever read the norm alone reads it there."""

    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = norm(x)
        return spelling(front, y).sin(), y[:, :, -2:].clone(), y.cos()

    found, left, graph = run(function)
    assert (list(found.values()), left) == ([2], [])
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

    found, left, graph = run(function)
    assert (list(found.values()), left) == ([times], [])
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


def channels_behind(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """conv3d's spelling, without the permutation that makes a video of it again."""
    return (torch.cat([p.permute(CHANNELS_BEHIND) for p in (front, channel(x))], 1).sin(),)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (later, "they are computed after it"),
        (into_two, "it goes into 2 videos, and can be written into one"),
        (of_another, "2 tensors stand in front of it; its kernel writes behind one"),
        (by_the_reference, "the lowering 'reference' cannot write there"),
        (channels_behind, "the video is read with its channels behind"),
        # None of ours ends these.
        (behind, None),
        (along_height, None),
        (widened, None),
    ],
)
def test_left_alone(function: Callable[..., Any], reason: str | None) -> None:
    found, left, graph = run(function)
    assert found == {}
    assert left == ([] if reason is None else [reason])
    assert count(graph, aten.cat.default) >= 1


def test_its_own_last_frame_is_computed_after_it() -> None:
    found, left, _ = run(last_frame)
    assert (found, left) == ({}, ["they are computed after it"])


def test_symbolic_frames_are_left_alone() -> None:
    gm = make_fx(behind_frames, tracing_mode="symbolic")(torch.empty(FRONT), torch.empty(X))
    mode = fake_mode_of(gm.graph)
    assert mode is not None
    found, left = write_into_cat(gm.graph, mode)
    assert found == {}
    assert list(left.values()) == ["the video's size is not known at compile time"]


def test_one_video_of_two_that_it_ends() -> None:
    """The other, with more in front than the kernel can write, copies as it did; nothing is left to
    say.
    """

    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = channel(x)
        return joined(front, front, y).sin(), joined(front, y).cos()

    found, left, _ = run(function)
    assert (list(found.values()), left) == ([2], [])


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
def test_the_rule_counts_on_no_more_than_the_pass_does(
    function: Callable[..., Any], expected: bool
) -> None:
    """Zeros become the convolution's own; of two videos the norm could be written into neither."""
    with FakeTensorMode():
        gm = make_fx(function)(*(torch.empty(s, dtype=torch.float64) for s in (FRONT, X)))
    (norm,) = [node for node in gm.graph.nodes if node.target in OPERATORS]
    assert stands_behind_frames(norm) is expected


def test_behind_frames_already() -> None:
    def function(front: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        op = torch.ops.rocm_passes.channel_norm
        y = op(
            x,
            None,
            None,
            None,
            "l2",
            1e-12,
            2.0,
            True,
            None,
            False,
            x.dtype,
            front,
            0,
            lowering="triton",
        )
        return (joined(front, y).sin(),)

    found, left, _ = run(function)
    assert (found, left) == ({}, ["it is written behind others already"])


@pytest.fixture
def interpreted() -> None:
    """Skips where the kernels run on a GPU: a CPU's graph is left alone there."""
    if not triton_is_interpreted():
        pytest.skip("a CPU graph has Triton's kernels in its interpreter only")


def ledger_of(function: Callable[..., Any], *args: Tensor, **options: Any) -> Entry:
    """The norm's entry, once the model function was compiled with the kernel (here interpreted)."""
    (entry,) = [
        e for e in rewrite(function, *args, options=options).sites if e.idiom == "channel_norm"
    ]
    return entry


def convolved(front: Tensor, x: Tensor, w: Tensor) -> Tensor:
    y = F.normalize(x, dim=1) * 2.0
    return F.conv3d(torch.cat([front, y], 2), w)


def video() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(FRONT), torch.randn(X), torch.randn(4, 4, 3, 1, 1)


@pytest.mark.usefixtures("interpreted")
def test_the_ledger_says_why_not() -> None:
    """A norm that goes into two videos."""

    def function(front: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = F.normalize(x, dim=1) * 2.0
        return F.conv3d(torch.cat([front, y], 2), w), torch.cat([front * 2, y], 2)

    entry = ledger_of(
        function, *video(), idioms="channel_norm", lowering={"channel_norm": "triton"}
    )
    assert entry.outcome == "rewritten"
    assert "front_frames" not in entry.parameters
    (note,) = entry.notes
    assert "not written behind the frames" in note and "2 videos" in note


@pytest.mark.usefixtures("interpreted")
def test_the_ledger_says_that_the_joined_video_is_gone() -> None:
    """The convolution's lowering joins all three pieces at once."""

    def function(front: Tensor, x: Tensor, w: Tensor) -> Tensor:
        y = F.normalize(x, dim=1) * 2.0
        return F.conv3d(torch.cat([torch.cat([front, y], 2), front], 2), w)

    lowering = {"channel_norm": "triton", "conv3d": "taps"}
    entry = ledger_of(function, *video(), idioms="channel_norm,conv3d", lowering=lowering)
    assert entry.parameters["joins"] is True
    assert "front_frames" not in entry.parameters
    (note,) = entry.notes
    assert note.endswith("the convolution as rewritten reads no joined video that ends with it")


@pytest.mark.usefixtures("interpreted")
def test_the_ledger_has_nothing_to_add_where_it_is() -> None:
    entry = ledger_of(
        convolved, *video(), idioms="channel_norm", lowering={"channel_norm": "triton"}
    )
    assert entry.parameters["front_frames"] == 2
    assert entry.notes == ()
