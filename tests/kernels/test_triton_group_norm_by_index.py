"""GroupNorm whose multiplier and addend are read by index instead of upsampled to x's size, against
float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.norms import group_norm_launch as module
from rocm_passes.kernels.triton.norms.group_norm_launch import GroupTile
from tests.kernels.kernel_calls import group_norm
from tests.kernels.norm_reference import assert_accurate
from tests.kernels.test_triton_channel_norm import ORDERS, video
from tests.suites import examples

pytestmark = pytest.mark.pairwise

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL, LARGE = (2, 2, 3), (3, 4, 7)


def nearest(small: tuple[int, ...], large: tuple[int, ...]) -> Tensor:
    """For each pixel of `large`, the number of the one that nearest upsampling takes from
    `small`.
    """
    numbers = torch.arange(math.prod(small), dtype=FP32).reshape(1, 1, *small)
    return F.interpolate(numbers, size=large)[0, 0].to(torch.int32)


def taken(t: Tensor, index: Tensor) -> Tensor:
    return t.flatten(2)[:, :, index.flatten().long()].reshape(*t.shape[:2], *index.shape)


def original(x: Tensor, y: Tensor, add: Tensor, index: Tensor) -> Tensor:
    norm = F.group_norm(x.contiguous(), 2, eps=1e-6)
    return F.silu(norm * taken(y, index) + taken(add, index))


def check(x: Tensor, y: Tensor, add: Tensor, index: Tensor, **options: Any) -> None:
    got = group_norm(
        x, 2, eps=1e-6, silu=True, multiplier=y, addend=add, pixel_index=index, **options
    )
    assert got.stride() == x.stride()
    assert_accurate(
        got, original(x.double(), y.double(), add.double(), index), original(x, y, add, index)
    )


def drawn(order: str, lies: str, dtype: torch.dtype = FP32) -> tuple[Tensor, Tensor, Tensor]:
    x = video((2, 6, *LARGE), order, dtype)
    y, add = (video((2, 6, *SMALL), lies, dtype, seed) for seed in (1, 2))
    return x, y, add


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lies", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_nearest_upsampling(order: str, lies: str, dtype: torch.dtype) -> None:
    check(*drawn(order, lies, dtype), nearest(SMALL, LARGE))


@pytest.mark.parametrize("order", ["contiguous", "channels-last"])
def test_any_index(order: str) -> None:
    index = torch.randint(0, math.prod(SMALL), LARGE, generator=torch.Generator().manual_seed(0))
    check(*drawn(order, "channels-last"), index)
    check(*drawn(order, "channels-last"), index.to(torch.int32))


@pytest.mark.parametrize("order", ["contiguous", "channels-last"])
def test_several_tiles(order: str) -> None:
    tile = GroupTile(channels=4, pixels=16, splits=3, num_warps=4)
    check(*drawn(order, "channels-last"), nearest(SMALL, LARGE), tile=tile)


@pytest.mark.parametrize("order", ["contiguous", "channels-last"])
def test_64_bit_offsets(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INT32_MAX", 10)
    check(*drawn(order, "channels-last"), nearest(SMALL, LARGE))


def test_offsets_are_wide_for_a_large_multiplier_of_a_small_x(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = []
    original_launch = module.launch  # type: ignore[attr-defined]

    def launch(*args: Any, **given: Any) -> None:
        wide.append(given.get("WIDE"))
        original_launch(*args, **given)

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "INT32_MAX", 2100)
    x = video((1, 2, 1, 2, 3), "channels-last")
    y, add = (video((1, 2, 1, 30, 40), "channels-last", seed=s) for s in (1, 2))
    tile = GroupTile(channels=2, pixels=16, splits=1, num_warps=4)
    check(x, y, add, torch.tensor([[[0, 1199, 3], [4, 7, 1000]]]), tile=tile)
    assert wide == [False, None, True]  # the statistics read x alone


def test_rows_and_columns_in_another_order_in_memory() -> None:
    """x is channels-last with columns before rows: the index is laid out as x is."""
    x, y, add = drawn("channels-last", "channels-last")
    x = x.permute(0, 2, 4, 3, 1).contiguous().permute(0, 4, 1, 3, 2)
    assert x.stride()[3] < x.stride()[4]
    check(x, y, add, nearest(SMALL, LARGE))


def test_an_index_that_is_a_view() -> None:
    index = nearest(SMALL, LARGE)
    check(
        *drawn("channels-last", "channels-last"), index.transpose(1, 2).contiguous().transpose(1, 2)
    )


def test_multiplier_and_addend_in_unlike_strides() -> None:
    x, y, _ = drawn("channels-last", "contiguous")
    add = video((2, 6, *SMALL), "channels-last", seed=2)
    check(x, y, add, nearest(SMALL, LARGE))
    check(x, y, video((2, 6, 2, 2, 6), "channels-last", seed=2)[..., ::2], nearest(SMALL, LARGE))
    narrow = video((2, 6, 2, 2, 4), "channels-last", seed=2)[..., :3]
    check(x, narrow.sin(), narrow, nearest(SMALL, LARGE))


def test_multiplier_and_addend_of_other_dtypes() -> None:
    x, y, add = drawn("channels-last", "channels-last", BF16)
    index = nearest(SMALL, LARGE)
    got = group_norm(
        x, 2, eps=1e-6, multiplier=y.double(), addend=add.float(), pixel_index=index, silu=True
    )
    assert_accurate(
        got, original(x.double(), y.double(), add.double(), index), original(x, y, add, index)
    )


def test_one_alone() -> None:
    x, y, _ = drawn("channels-last", "channels-last")
    index = nearest(SMALL, LARGE)
    exact = F.group_norm(x.double().contiguous(), 2, eps=1e-6)
    got = group_norm(x, 2, eps=1e-6, multiplier=y, pixel_index=index)
    torch.testing.assert_close(got.double(), exact * taken(y.double(), index), rtol=1e-5, atol=1e-5)
    got = group_norm(x, 2, eps=1e-6, addend=y, pixel_index=index)
    torch.testing.assert_close(got.double(), exact + taken(y.double(), index), rtol=1e-5, atol=1e-5)


@settings(max_examples=examples(15), deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 2),
    width=st.integers(1, 9),
    small=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    large=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6)),
    order=st.sampled_from(sorted(ORDERS)),
    lies=st.sampled_from(sorted(ORDERS)),
    dtype=st.sampled_from([FP32, FP16, BF16]),
)
def test_any_shape(
    samples: int,
    width: int,
    small: tuple[int, int, int],
    large: tuple[int, int, int],
    order: str,
    lies: str,
    dtype: torch.dtype,
) -> None:
    x = video((samples, 2 * width, *large), order, dtype)
    y, add = (video((samples, 2 * width, *small), lies, dtype, seed) for seed in (1, 2))
    index = nearest(small, large)
    got = group_norm(x, 2, eps=1e-6, multiplier=y, addend=add, pixel_index=index)
    # The same arithmetic as on tensors that are written out.
    assert torch.equal(
        got, group_norm(x, 2, eps=1e-6, multiplier=taken(y, index), addend=taken(add, index))
    )


def by_index(**changes: Any) -> Tensor:
    x, y, add = drawn("channels-last", "channels-last")
    arguments: dict[str, Any] = {
        "multiplier": y,
        "addend": add,
        "pixel_index": nearest(SMALL, LARGE),
    }
    return group_norm(x, 2, **(arguments | changes))


def test_refuses_an_index_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"pixel_index has shape \(2, 2, 3\)"):
        by_index(pixel_index=nearest(SMALL, SMALL))


def test_refuses_an_index_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"pixel_index is torch\.float32"):
        by_index(pixel_index=nearest(SMALL, LARGE).float())


def test_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=r"addend has shape \(2, 5, 2, 2, 3\)"):
        by_index(addend=torch.ones(2, 5, *SMALL))


def test_refuses_multiplier_and_addend_of_unlike_shapes() -> None:
    with pytest.raises(ValueError, match="not of one shape"):
        by_index(addend=torch.ones(2, 6, 1, 2, 3))


def test_refuses_integers() -> None:
    with pytest.raises(TypeError, match=r"multiplier is torch\.int64"):
        by_index(multiplier=torch.ones(2, 6, *SMALL, dtype=torch.int64))
