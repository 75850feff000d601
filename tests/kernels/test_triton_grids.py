"""Launches beyond what a driver takes along an axis of a grid, and offsets beyond 32 bits."""

from __future__ import annotations

import pytest
import torch

from rocm_passes.kernels.triton import launch as launching
from rocm_passes.kernels.triton.norms import norm_plan
from rocm_passes.kernels.triton.rotary import rotary_tiles
from tests.kernels.kernel_calls import rotary, rotary_pair
from tests.kernels.rotary_reference import assert_is_the_formula, tables


def test_a_batch_of_more_than_an_axis_takes() -> None:
    """The batch stood on the second axis, which ends at 65535. (Sizes alone: no program is run.)"""
    x = torch.empty(70_000, 1, 1, 4, device="meta")
    table = torch.empty(1, 1, 1, 2, device="meta")
    with launching.written_down() as launches:
        rotary(x, table, table, interleaved=True)
        rotary_pair(x, x, table, table, interleaved=True)
    for launch in launches:
        assert len(launch.grid) == 1
        assert launch.grid[0] >= 70_000
        launching.check_grid(launch.grid, 128)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 19])
def test_samples_and_tokens_on_one_axis(tokens: int, per_sample: bool) -> None:
    """Each program finds its own sample and tokens, q's and k's, where tokens fill no whole number
    of tiles.
    """
    torch.manual_seed(0)
    q, k = torch.randn(5, tokens, 3, 16), torch.randn(5, tokens, 2, 16)
    cos, sin = tables(5 if per_sample else 1, tokens, 1, 8)
    for x, out in zip((q, k), rotary_pair(q, k, cos, sin, interleaved=False), strict=True):
        assert_is_the_formula(out, x, cos, sin, False, 16)


@pytest.mark.parametrize(
    "grid, lanes, hip", [((2**31,), 32, None), ((1, 65536), 32, None), ((2**25,), 128, "7.0")]
)
def test_a_grid_that_no_driver_launches(
    grid: tuple[int, ...], lanes: int, hip: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(ValueError, match="a grid of"):
        launching.check_grid(grid, lanes)


def test_grids_at_the_limit() -> None:
    launching.check_grid((2**31 - 1,), 1)
    launching.check_grid((1, 65535, 65535), 1024)


def test_a_launch_checks_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRID_LIMITS", (3, 1, 1))
    with pytest.raises(ValueError, match="a grid of"):
        rotary(torch.randn(4, 1, 1, 4), *tables(1, 1, 1, 2), interleaved=True)


def test_tables_whose_channels_lie_beyond_32_bits_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotary_tiles, "INT32_MAX", 10)
    cos, sin = (torch.randn(1, 8, 1, 5).transpose(1, 3) for _ in range(2))
    x = torch.randn(2, 5, 3, 16)
    made = rotary_tiles.prepare_tables(cos, sin, 2, {3}, 16)
    assert made.strides[3] == 1
    assert_is_the_formula(rotary(x, cos, sin, interleaved=True), x, cos, sin, True, 16)


def test_a_modulation_whose_channels_lie_beyond_32_bits_is_copied() -> None:
    near = (torch.Size([1, 64]), (64, 1), torch.float32)
    far = (torch.Size([1, 64]), (1, 2**26), torch.float32)
    assert not norm_plan.needs_copy(2, near)
    assert norm_plan.needs_copy(2, far)
