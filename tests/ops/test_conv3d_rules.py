"""Which lowering of a 3-D convolution is taken where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.options import Options
from rocm_passes.policy import verdict
from rocm_passes.policy.memory import usual_memory_mib
from rocm_passes.rewrite.choose import asked
from rocm_passes.target import Target
from tests.ops.conv3d_calls import AMD, BF16, BY_NAME, CPU, LOWERINGS, call

NVIDIA = Target("nvidia", "sm_90", "H200", "2.11", "3.6")
AMPERE = Target("nvidia", "sm_80", "A100", "2.11", "3.6")


def large(frames: int) -> Conv3d:
    """Its unfolded copy needs more memory than it may."""
    small = call((3,), dtype=BF16)
    return replace(small, x=(torch.empty(1, 4, frames, 1024, 1024, dtype=BF16, device="meta"),))


@pytest.mark.parametrize(
    ("target", "c", "expected"),
    [
        (CPU, call((3,), zeros=(0, 0)), "direct"),
        (CPU, call((1,), zeros=(2, 0)), "conv2d"),
        (AMD, call((3,)), "taps"),
        (AMD, call((3,), kernel=(1, 2, 2), stride=(1, 2, 2), padding=(0, 0)), "matmul"),
        (AMD, call((3,), dtype=BF16), "unfold"),
        (AMD, call((2, 2), dtype=BF16), "unfold"),
        (AMD, call((1, 1), zeros=(1, 0), dtype=BF16), "unfold"),
        (AMD, call((1,), zeros=(2, 0), dtype=BF16), "conv2d"),
        (AMD, call((3,), compute=BF16, dtype=torch.float32), "unfold"),
        (AMD, large(16), "unfold"),
        (AMD, large(32), "direct"),
        (NVIDIA, call((6,), channels=96, out=96, channels_last=True, dtype=BF16), "triton"),
        (NVIDIA, call((6,), channels=96, out=96, dtype=BF16), "direct"),
        (AMPERE, call((6,), channels=96, out=96, channels_last=True, dtype=BF16), "direct"),
        (
            NVIDIA,
            call((6,), channels=128, out=128, channels_last=True, dtype=torch.bfloat16),
            "direct",
        ),
        (
            NVIDIA,
            call((6,), channels=128, out=128, channels_last=True, dtype=torch.float32),
            "taps",
        ),
        (NVIDIA, call((6,), channels=96, out=3, channels_last=True, dtype=torch.float32), "direct"),
    ],
)
def test_rules_where_nothing_is_measured(target: Target, c: Conv3d, expected: str) -> None:
    able = [low for low in LOWERINGS if asked(low, c, target, Options()).verdict == "able"]
    first = next(low.name for low in able if verdict("conv3d", low.name, c, target).pays)
    assert first == expected


@pytest.mark.parametrize(("name", "call_of"), [("tiled", "call"), ("taps_tiled", "call per tap")])
@pytest.mark.parametrize("target", [CPU, AMD, NVIDIA])
def test_tiles_are_never_taken_by_rule(target: Target, name: str, call_of: str) -> None:
    c = call((9,), channels=96, out=96, channels_last=True, dtype=torch.bfloat16)
    assert BY_NAME[name].refuses(c, CPU) is None
    said = verdict("conv3d", name, c, target)
    assert not said.pays and f"one {call_of} is faster; tiles bound the peak memory" in said.reason


def test_the_usual_memory_bound() -> None:
    """Half a gigabyte, or three quarters of input and result: 6 + 4 frames of Wan's last block in
    720p.
    """
    small = call((2, 4))
    assert usual_memory_mib(small) == 512
    with torch.device("meta"):
        pieces = tuple(torch.empty(1, 96, t, 720, 1280, dtype=torch.bfloat16) for t in (2, 4))
        weight = torch.empty(96, 96, 3, 3, 3, dtype=torch.bfloat16)
    large = replace(call((2, 4)), x=pieces, weight=weight)
    assert usual_memory_mib(large) == 0.75 * 10 * 96 * 720 * 1280 * 2 / 2**20
    # A smaller call beside it: together with its own tensors as much as the large one with its.
    mib = small.tensors_mib()
    bound = usual_memory_mib(replace(small, largest_mib=large.tensors_mib()))
    assert mib + bound == pytest.approx(1.75 * large.tensors_mib())
    assert usual_memory_mib(replace(small, largest_mib=100)) == 512
    assert large.flops() == 2 * 4 * 720 * 1280 * 96 * 96 * 27
