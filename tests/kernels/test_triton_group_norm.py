"""GroupNorm with SiLU of image and video tensors, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.norms.group_norm_launch import GroupTile, choose_tile
from tests.kernels.kernel_calls import group_norm
from tests.kernels.norm_reference import assert_accurate
from tests.kernels.test_triton_channel_norm import ORDERS, video
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def original(
    x: Tensor, groups: int, w: Tensor | None, b: Tensor | None, silu: bool = False
) -> Tensor:
    # On a contiguous copy: eager's channels-last GroupNorm on the CPU loses a large mean's variance
    # altogether.
    y = F.group_norm(x.contiguous(), groups, w, b, 1e-6)
    return F.silu(y) if silu else y


def affine(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = torch.randn(2, channels, generator=torch.Generator().manual_seed(7)).to(dtype)
    return values[0], values[1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (6, 3), (32, 32), (96, 32)])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm(channels: int, groups: int, dtype: torch.dtype, order: str, silu: bool) -> None:
    x = video((2, channels, 2, 3, 5), order, dtype)
    w, b = affine(channels, dtype)
    got = group_norm(x, groups, w, b, 1e-6, silu=silu)
    assert got.stride() == x.stride()
    exact = original(x.double(), groups, w.double(), b.double(), silu)
    assert_accurate(got, exact, original(x, groups, w, b, silu))


@pytest.mark.parametrize("order", ["contiguous", "channels-last"])
def test_a_group_spread_over_many_programs(order: str) -> None:
    x = video((2, 4, 3, 9, 10), order)
    tile = GroupTile(channels=2, pixels=16, splits=5, num_warps=4)
    got = group_norm(x, 2, None, None, 1e-6, tile=tile)
    assert_accurate(got, original(x.double(), 2, None, None), original(x, 2, None, None))


@pytest.mark.parametrize("order", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_mean_1000_and_deviation_1(dtype: torch.dtype, order: str) -> None:
    x = (video((1, 8, 3, 20, 20), order) + 1000).to(dtype)
    tile = GroupTile(channels=4, pixels=64, splits=7, num_warps=4)
    got = group_norm(x, 2, None, None, 1e-6, tile=tile)
    assert_accurate(got, original(x.double(), 2, None, None), original(x, 2, None, None))


def test_a_first_tile_unlike_the_rest() -> None:
    """The sums are shifted by the first tile's mean: here it is no measure of the others.

    The bar is wider than elsewhere, by design: with a share f of the pixels in the odd tile, the
    variance is at least f of the mean square about the shift, so that the subtraction costs at most
    1/f (here 16) roundings.
    """
    x = video((1, 2, 1, 1, 256), "contiguous") + 1000
    x[..., :16] = 0
    tile = GroupTile(channels=1, pixels=16, splits=1, num_warps=4)
    got = group_norm(x, 1, None, None, 1e-6, tile=tile)
    exact = original(x.double(), 1, None, None)
    assert ((got - exact).abs() <= 16 * torch.finfo(FP32).eps * exact.abs()).all()


def test_a_constant_group() -> None:
    x = torch.full((1, 4, 5, 5), 3.0)
    assert torch.equal(group_norm(x, 2), torch.zeros_like(x))


def test_weight_or_bias_alone_and_of_another_dtype() -> None:
    x = video((1, 6, 2, 3, 5), "contiguous", BF16)
    w, b = affine(6, FP32)
    for weight, bias in ((w, None), (None, b), (w.double(), b.double())):
        got = group_norm(x, 3, weight, bias, 1e-6)
        doubles = [None if t is None else t.double() for t in (weight, bias)]
        plain = [None if t is None else t.to(BF16) for t in (weight, bias)]
        assert_accurate(got, original(x.double(), 3, *doubles), original(x, 3, *plain))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 6, 2, 3, 5), (2, 6, 1, 1, 1), (1, 6, 2, 1, 5)])
def test_spatial_norm_multiplies_and_adds(order: str, shape: tuple[int, ...]) -> None:
    x = video((2, 6, 2, 3, 5), order, BF16)
    y, add = video(shape, "contiguous", BF16, seed=1), video(shape, "channels-last", BF16, seed=2)
    w, b = affine(6, BF16)

    def spatial(x: Tensor, w: Tensor, b: Tensor, y: Tensor, add: Tensor) -> Tensor:
        return F.silu(original(x, 3, w, b) * y + add)

    got = group_norm(x, 3, w, b, 1e-6, silu=True, multiplier=y, addend=add)
    assert got.stride() == x.stride()
    assert_accurate(
        got, spatial(*(t.double() for t in (x, w, b, y, add))), spatial(x, w, b, y, add)
    )


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 9), (2, 8, 3, 7)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_accurate(
        group_norm(x, 2, eps=1e-6), original(x.double(), 2, None, None), original(x, 2, None, None)
    )


def test_a_cropped_tensor_and_a_batch_that_is_not_outermost() -> None:
    for x in (
        video((2, 6, 4, 3, 8), "channels-last")[..., 2:7],
        video((3, 6, 2, 2, 4), "contiguous").transpose(0, 2),
    ):
        got = group_norm(x, 3, eps=1e-6)
        assert got.stride() == torch.empty_like(x).stride()
        assert_accurate(got, original(x.double(), 3, None, None), original(x, 3, None, None))


def test_bf16_in_fp32_out() -> None:
    x = video((1, 6, 2, 3, 5), "contiguous", BF16)
    got = group_norm(x, 3, eps=1e-6, out_dtype=FP32)
    assert_accurate(got, original(x.double(), 3, None, None), original(x.float(), 3, None, None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_spoil_their_group_alone(bad: float) -> None:
    x = video((2, 6, 1, 3, 5), "contiguous")
    x[0, 2, 0, 1, 1] = bad
    got = group_norm(x, 3, eps=1e-6)
    assert got[0, 2:4].isnan().all()
    assert got[0, :2].isfinite().all() and got[0, 4:].isfinite().all() and got[1].isfinite().all()


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 2),
    groups=st.integers(1, 5),
    width=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6)),
    order=st.sampled_from(sorted(ORDERS)),
    dtype=st.sampled_from([FP32, FP16, BF16]),
    mean=st.sampled_from([0.0, -30.0]),
)
def test_any_shape(
    samples: int,
    groups: int,
    width: int,
    sizes: tuple[int, int, int],
    order: str,
    dtype: torch.dtype,
    mean: float,
) -> None:
    x = (video((samples, groups * width, *sizes), order) + mean).to(dtype)
    got = group_norm(x, groups, eps=1e-6)
    assert_accurate(got, original(x.double(), groups, None, None), original(x, groups, None, None))


@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (1, 4, 0, 2)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    assert group_norm(torch.empty(shape), 2).shape == shape


# Refusals


def test_refuses_fp64() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        group_norm(torch.ones(1, 2, 3, dtype=torch.float64), 1)


def test_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="1-d"):
        group_norm(torch.ones(3), 1)


@pytest.mark.parametrize("groups", [0, 4])
def test_refuses_groups_that_do_not_divide_the_channels(groups: int) -> None:
    with pytest.raises(ValueError, match=f"6 channels do not divide into {groups} groups"):
        group_norm(torch.ones(1, 6, 3), groups)


def test_refuses_a_weight_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); 2 elements"):
        group_norm(torch.ones(1, 2, 3), 1, torch.ones(3))


def test_refuses_an_integer_weight() -> None:
    with pytest.raises(TypeError, match=r"weight is torch\.int64"):
        group_norm(torch.ones(1, 2, 3), 1, torch.ones(2, dtype=torch.int64))


def test_refuses_a_multiplier_that_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"multiplier of shape \(2, 1, 1\)"):
        group_norm(torch.ones(1, 4, 3, 3), 1, multiplier=torch.ones(2, 1, 1))


def test_refuses_an_integer_addend() -> None:
    with pytest.raises(TypeError, match=r"addend is torch\.int64"):
        group_norm(torch.ones(1, 4, 3), 1, addend=torch.ones(3, dtype=torch.int64))


def test_refuses_an_output_dtype_that_it_cannot_store() -> None:
    with pytest.raises(TypeError, match=r"out is torch\.float64"):
        group_norm(torch.ones(1, 2, 3), 1, out_dtype=torch.float64)


# Tiles


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "pixels"), [(128, 2**20), (512, 16384), (320, 64), (7, 1), (2048, 9)]
)
def test_tiles_are_powers_of_two(channels: int, pixels: int, channels_last: bool) -> None:
    tile = choose_tile(1, channels, pixels, channels_last)
    assert tile.channels & (tile.channels - 1) == 0 and tile.pixels & (tile.pixels - 1) == 0
    assert 1 <= tile.splits <= 512


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x_bias(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """The bias of the convolution before it, added unrounded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 5, 7, generator=generator).to(dtype).to(memory_format=layout)
    bias = torch.randn(20, generator=generator).to(dtype) * 3
    y = group_norm(x, 4, eps=1e-6, x_bias=bias, silu=True)
    shifted = x.double() + bias.double()[:, None, None]
    exact = torch.nn.functional.silu(
        torch.nn.functional.group_norm(shifted.contiguous(), 4, eps=1e-6)
    )
    # Triton's interpreter truncates to bfloat16: a whole unit in the last place.
    rtol = {torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=rtol)
    assert y.stride() == x.stride()
