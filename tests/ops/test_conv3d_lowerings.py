"""Every lowering of a 3-D convolution against the original, and the reasons of its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aten.conv3d_write import TILE_FRAMES, tiles_of_taps
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.time_axis import TimeAxis
from tests.ops.conv3d_calls import BY_NAME, CPU, LOWERINGS, Counting, call, calls, plain
from tests.suites import examples


@settings(max_examples=examples(400), deadline=None)
@given(calls())
def test_every_lowering_is_exact(c: Conv3d) -> None:
    expected = plain(c)
    taken = [low for low in LOWERINGS if low.refuses(c, CPU) is None]
    assert "direct" in [low.name for low in taken]
    for low in taken:
        got = low.write(Eager(), c)
        assert got.shape == expected.shape, low.name
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=low.name)


@settings(max_examples=examples(300), deadline=None)
@given(
    frames=st.integers(1, 6), front=st.integers(0, 4), back=st.integers(0, 4),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3), dilation=st.integers(1, 3),
)  # fmt: skip
def test_taps_are_those_that_see_a_frame(**sizes: int) -> None:
    axis = TimeAxis(**sizes)
    assume(axis.out > 0)
    real = range(axis.front, axis.front + axis.frames)
    for tap in range(axis.kernel):
        reads = {o: o * axis.stride + tap * axis.dilation for o in range(axis.out)}
        fed = [o for o, frame in reads.items() if frame in real]
        found = [t for t in axis.taps() if t.index == tap]
        if not fed:
            assert found == []
        else:
            (t,) = found
            assert list(range(t.first, t.first + t.count)) == fed
            assert t.start == reads[t.first] - axis.front


@settings(max_examples=examples(300), deadline=None)
@given(
    frames=st.integers(1, 12), front=st.integers(0, 4), back=st.integers(0, 4),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3), dilation=st.integers(1, 3),
)  # fmt: skip
def test_tiles_of_taps_read_what_the_taps_read(**sizes: int) -> None:
    axis = TimeAxis(**sizes)
    assume(axis.out > 0)

    def reads(taps: Any, first: int) -> set[tuple[int, int, int]]:
        """Tap, output, frame read for it."""
        return {
            (t.index, first + t.first + i, t.start + i * axis.stride)
            for t in taps
            for i in range(t.count)
        }

    found: set[tuple[int, int, int]] = set()
    first = 0
    for taps, count in tiles_of_taps(axis):
        assert all(t.first >= 0 and t.count > 0 and t.first + t.count <= count for t in taps)
        found |= reads(taps, first)
        first += count
    assert first == axis.out
    assert found == reads(axis.taps(), 0)


@pytest.mark.parametrize(
    ("out", "tiles"),
    [(1, [1]), (2, [1, 1]), (3, [1] * 3), (4, [1] * 4), (5, [4, 1]), (9, [4, 4, 1])],
)
def test_of_a_few_frames_each_is_a_tile_of_taps(out: int, tiles: list[int]) -> None:
    axis = TimeAxis(frames=out, front=2, back=0, kernel=3, stride=1, dilation=1)
    assert [count for _, count in tiles_of_taps(axis)] == tiles


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("frames", [(2, 4), (2, 9)])
def test_tiled_taps_are_the_sum_in_the_layout_of_the_call(
    frames: tuple[int, ...], channels_last: bool, batch: int
) -> None:
    c = call(frames, batch=batch, channels_last=channels_last)
    got = BY_NAME["taps_tiled"].write(Eager(), c)
    torch.testing.assert_close(got, plain(c), rtol=1e-12, atol=1e-12)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_tile_is_computed_before_the_next_is_convolved(channels_last: bool) -> None:
    noted = Counting()
    BY_NAME["taps_tiled"].write(noted, call((2, 4), channels_last=channels_last))
    assert noted.steps == (["convolution"] * 3 + ["computed"]) * 4 + ["cat"]


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_chunks_with_a_cache_equal_the_whole(frames: int) -> None:
    """A causal convolution over frames at once, and frame by frame with the last two frames
    cached.
    """
    whole = call((frames,), zeros=(2, 0))
    expected = plain(whole)
    x = whole.x[0]
    for name in ("direct", "taps", "unfold"):
        got = []
        for t in range(frames):
            pieces = [x[:, :, max(0, t - 2) : t], x[:, :, t : t + 1]]
            chunk = replace(
                whole, x=tuple(p for p in pieces if p.shape[2]), zeros=(max(0, 2 - t), 0)
            )
            got.append(BY_NAME[name].write(Eager(), chunk))
        torch.testing.assert_close(torch.cat(got, 2), expected, rtol=1e-12, atol=1e-12)


def test_an_image_through_a_video_kernel_is_one_conv2d() -> None:
    image = call((1,), zeros=(2, 0))
    assert image.live_taps() == 1
    assert BY_NAME["conv2d"].refuses(image, CPU) is None
    counted = Counting()
    torch.testing.assert_close(
        BY_NAME["conv2d"].write(counted, image), plain(image), rtol=1e-12, atol=1e-12
    )
    assert counted.convolutions == [4]


def test_taps_leave_out_zero_frames() -> None:
    counted = Counting()
    BY_NAME["taps"].write(counted, call((1,), zeros=(1, 1)))
    assert len(counted.convolutions) == 1


REFUSALS = [
    ("conv2d", call((3,)), "3 temporal taps see frames that are not zero"),
    ("conv2d", call((1,), zeros=(2, 1)), "2 temporal taps see frames that are not zero"),
    ("conv2d", call((1,), zeros=(2, 0), kernel=(1, 3, 3)), "some output frames see zeros alone"),
    ("taps", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap"),
    (
        "taps",
        call((1,), zeros=(0, 4), stride=(4, 1, 1), kernel=(1, 3, 3)),
        "kT=1: there is one tap",
    ),
    ("taps_tiled", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap"),
    ("taps_tiled", call((3,)), "1 output frame is one tile"),
    (
        "taps_tiled",
        call((1,), zeros=(4, 0)),
        "no temporal tap of some tile sees a frame that is not zero",
    ),
    ("unfold", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap, so nothing to unfold"),
    (
        "matmul",
        call((3,)),
        "the kernel is not as large as the stride: inputs are read more than once",
    ),
    ("matmul", call((3,), kernel=(1, 1, 1), groups=2, out=4, padding=(0, 0)), "groups=2"),
    ("matmul", call((3,), kernel=(1, 1, 1)), "it has padding"),
    (
        "matmul",
        call((3,), kernel=(1, 2, 2), stride=(1, 2, 2), padding=(0, 0), dilation=(1, 2, 1)),
        "dilation=(1, 2, 1)",
    ),
    ("tiled", call((TILE_FRAMES,)), "2 output frames are one tile"),
    ("tiled", call((3,)), "1 output frame is one tile"),
]


@pytest.mark.parametrize(
    ("name", "c", "reason"), REFUSALS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refusals_say_why(name: str, c: Conv3d, reason: str) -> None:
    assert BY_NAME[name].refuses(c, CPU) == reason
