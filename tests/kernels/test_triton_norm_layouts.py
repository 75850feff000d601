"""The norm kernel's rows: of any strides, any number of dims, in blocks and tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rocm_passes.kernels.triton.norms.norm_plan import (
    MAX_WIDTH,
    choose_tile,
)
from rocm_passes.kernels.triton.rows import RowBlocks, collapse
from tests.kernels.kernel_calls import fused_norm
from tests.kernels.norm_calls import add_rms_norm, doubles, normal, rms, rms_norm
from tests.kernels.norm_reference import assert_accurate

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def strided(name: str) -> Tensor:
    """[2, 5, 6, 16] tensors whose rows are contiguous and lie anywhere."""
    base = normal(2, 5, 3 * 6 * 16)
    match name:
        case "slice of a fused projection":
            return base[..., 96:192].unflatten(-1, (6, 16))
        case "heads before tokens":
            return normal(2, 6, 5, 16).transpose(1, 2)
        case "every second token":
            return normal(2, 10, 6, 16)[:, ::2]
        case "expanded batch":
            return normal(1, 5, 6, 16).expand(2, 5, 6, 16)
        case "rows not contiguous":
            return normal(2, 5, 16, 6).transpose(2, 3)
        case "all dims reversed":
            return normal(6, 5, 2, 16).permute(2, 1, 0, 3)
    raise ValueError(name)


LAYOUTS = [
    "slice of a fused projection",
    "heads before tokens",
    "every second token",
    "expanded batch",
    "rows not contiguous",
    "all dims reversed",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_head_norm_of_strided_views(layout: str) -> None:
    x, w = strided(layout), normal(16, seed=1)
    got = rms_norm(x, w, 1e-6)
    assert got.is_contiguous()
    assert_accurate(got, rms(*doubles(x, w), 1e-6), rms(x, w, 1e-6))


def test_operands_of_five_unlike_dims_are_copied() -> None:
    x = normal(2, 3, 2, 3, 4, 8)[:, :, :, :, ::2]
    scale = normal(2, 1, 2, 1, 2, 8, seed=1)
    (got,), _ = fused_norm(x, kind="rms", eps=1e-6, modulations=[(scale, None)])
    assert_accurate(
        got, rms(x.double(), None, 1e-6) * (1 + scale.double()), rms(x, None, 1e-6) * (1 + scale)
    )


def test_branch_broadcasts_over_leading_dims() -> None:
    x, y = normal(4, 16), normal(3, 1, 16, seed=1)
    got, total = add_rms_norm(x, y, None, 1e-6)
    assert total.shape == (3, 4, 16)
    assert_accurate(got, rms(x.double() + y.double(), None, 1e-6), rms(x + y, None, 1e-6))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (2, 0, 5)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    got, total = add_rms_norm(torch.empty(shape), torch.empty(shape), None, 1e-6)
    assert got.shape == total.shape == shape


def test_collapse_merges_what_all_operands_allow() -> None:
    contiguous, by_sample = (60, 20, 10), (3, 0, 0)
    index = collapse((2, 3, 2), [contiguous, by_sample])
    assert index is not None
    assert index.sizes == (2, 6, 1) and index.rank == 2
    assert index.strides == ((60, 10, 0), (3, 0, 0))
    assert index.constant_in_group(1) and not index.constant(1) and not index.constant_in_group(0)


def test_collapse_drops_dims_of_one_and_gives_up_beyond_three() -> None:
    index = collapse((1, 4, 1), [(99, 7, 99)])
    assert index is not None and index.sizes == (4, 1, 1) and index.strides == ((7, 0, 0),)
    assert collapse((2, 2, 2, 2), [(1, 10, 100, 1000)]) is None


def test_row_blocks_do_not_cross_groups() -> None:
    index = collapse((3, 10), [(100, 1), (1, 0)])
    assert index is not None
    assert RowBlocks.over(index, 4, grouped=True) == RowBlocks(
        inner=10, blocks_per_group=3, blocks=9
    )
    assert RowBlocks.over(index, 4, grouped=False) == RowBlocks(
        inner=30, blocks_per_group=8, blocks=8
    )


@pytest.mark.parametrize("width", [1, 64, 1536, 3072, 3840, 5120, 6144, 8192, 13824, MAX_WIDTH])
def test_tiles_waste_few_lanes(width: int) -> None:
    tile = choose_tile(width)
    covered = -(-width // tile.chunk) * tile.chunk
    assert covered <= width * 1.2
    assert tile.chunk & (tile.chunk - 1) == 0 and tile.rows & (tile.rows - 1) == 0
