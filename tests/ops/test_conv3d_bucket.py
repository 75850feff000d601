"""Frames rounded up to a multiple: exact in every lowering, one size and one key for neighbouring
lengths.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rocm_passes.fx.builder import Eager
from rocm_passes.ops.conv3d import Conv3d
from tests.ops.conv3d_calls import BY_NAME, CPU, LOWERINGS, call, calls, has_output, plain
from tests.suites import examples


def bucketed(bucket: int, c: Conv3d) -> Conv3d:
    return c.rounded_up(bucket)


@settings(max_examples=examples(200), deadline=None)
@given(calls(), st.integers(2, 8))
def test_every_lowering_is_exact(c: Conv3d, bucket: int) -> None:
    c = bucketed(bucket, c)
    assume(has_output(c) and c.extra_frames > 0)
    for low in LOWERINGS:
        if low.refuses(c, CPU) is None:
            got = low.write(Eager(), c)
            torch.testing.assert_close(got, plain(c), rtol=1e-12, atol=1e-12, msg=low.name)


def test_a_tile_that_only_the_excess_makes_may_see_no_frame() -> None:
    """Of nine frames the last, a tile of its own, sees the zeros behind: with seven it shares a
    tile.
    """
    c = call((6,), kernel=(2, 1, 1), padding=(0, 0), zeros=(0, 2))
    assert BY_NAME["taps_tiled"].refuses(c, CPU) is None
    assert BY_NAME["taps_tiled"].refuses(bucketed(3, c), CPU) == (
        "no temporal tap of some tile sees a frame that is not zero"
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["direct", "taps", "unfold"])
def test_neighbouring_lengths_are_convolutions_of_one_size(name: str, stride: int) -> None:
    sizes: set[Any] = set()
    keys: set[str] = set()
    for frames in (3, 4, 5, 6):
        c = bucketed(4, call((2, frames * stride), stride=(stride, 1, 1), channels_last=True))
        noted = _Sizes()
        low = BY_NAME[name]
        result = low.write(noted, c)
        torch.testing.assert_close(result, plain(c), rtol=1e-12, atol=1e-12)
        sizes.add((result.shape[2] > 4, tuple(noted.sizes)))
        keys.add(c.key())
    assert len(sizes) == len(keys) == 2


@pytest.mark.parametrize(
    ("c", "extra"),
    [
        (call((2, 3)), 1),
        (call((2, 4)), 0),
        (call((2, 5)), 3),
        (call((2, 1)), 0),  # A single frame: its cost would be a multiple.
        (call((3,), zeros=(2, 0)), 1),
        (call((2,), zeros=(2, 1)), 1),
        (call((1,), zeros=(2, 1)), 0),  # One tap sees zeros alone: it is spared.
        (call((1,), zeros=(2, 0)), 0),
        (call((3,), kernel=(1, 3, 3)), 1),
        (call((3,), kernel=(1, 3, 3), zeros=(1, 1)), 0),
        (call((2, 3), stride=(2, 1, 1)), 2),
    ],
)
def test_how_many_frames_are_in_excess(c: Conv3d, extra: int) -> None:
    assert c.rounded_up(4).extra_frames == extra
    assert c.rounded_up(0).extra_frames == 0


class _Sizes(Eager):
    def __init__(self) -> None:
        self.sizes: list[Any] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target is torch.ops.aten.convolution.default:
            self.sizes.append((tuple(args[0].shape), tuple(args[1].shape)))
        return super().__call__(target, *args, **kwargs)
