"""RMSNorm over dim 1 of image and video tensors, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.dense import dense_view
from rocm_passes.kernels.triton.norms.channel_norm_launch import ChannelTile, choose_tile
from tests.kernels.kernel_calls import channel_norm
from tests.kernels.norm_reference import assert_accurate, wide
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# Orders of the dims of [N, C, T, H, W] in memory, slowest first.
ORDERS = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels-last": (0, 2, 3, 4, 1),
    "frames outside": (0, 2, 1, 3, 4),
}


def video(shape: tuple[int, ...], order: str, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    """A [N, C, T, H, W] tensor that lies in memory in the given order."""
    dims = ORDERS[order]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.permute(dims).contiguous().permute([dims.index(d) for d in range(5)])


def wan(x: Tensor, gamma: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    n = F.normalize(wide(x), dim=1).to(x.dtype)
    return F.silu(n * x.shape[1] ** 0.5 * gamma + bias)


def ltx2(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + eps)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("channels", [1, 3, 48, 96, 130])
def test_wans_norm_and_silu(channels: int, dtype: torch.dtype, order: str) -> None:
    x = video((2, channels, 2, 3, 5), order, dtype)
    gamma = video((1, channels, 1, 1, 1), "contiguous", dtype, seed=1)[0]
    got = channel_norm(x, gamma, scale=channels**0.5, silu=True, round_before_weight=True)
    assert got.stride() == x.stride()
    # On a GPU the squares are summed in another order, which moves 1 / length, and all of its
    # pixel, by a unit.
    units = 2.0 if torch.cuda.is_available() and dtype == FP32 else 1.0
    assert_accurate(got, wan(x.double(), gamma.double()), wan(x, gamma), units)


@pytest.mark.parametrize("order", ORDERS)
def test_ltx2s_norm(order: str) -> None:
    x = video((1, 20, 2, 3, 5), order, BF16)
    assert_accurate(channel_norm(x, form="mean", eps=1e-8), ltx2(x.double(), 1e-8), ltx2(x, 1e-8))


@pytest.mark.parametrize("order", ORDERS)
def test_rows_that_do_not_fit_in_registers_are_read_twice(order: str) -> None:
    x, gamma = video((1, 40, 2, 3, 5), order), torch.linspace(-1, 1, 40)
    tile = ChannelTile(chunk=16, pixels=8, resident=False, num_warps=4)
    got = channel_norm(x, gamma, scale=2.0, silu=True, tile=tile)

    def original(x: Tensor, gamma: Tensor) -> Tensor:
        return F.silu(F.normalize(x, dim=1) * 2.0 * gamma.view(40, 1, 1, 1))

    assert_accurate(got, original(x.double(), gamma.double()), original(x, gamma))


def test_the_widest_vaes() -> None:
    for channels in (1024, 2048):
        x = video((1, channels, 1, 2, 3), "contiguous")
        got = channel_norm(x, scale=channels**0.5)
        assert_accurate(
            got,
            F.normalize(x.double(), dim=1) * channels**0.5,
            F.normalize(x, dim=1) * channels**0.5,
        )


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 5), (2, 7, 5, 3)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_accurate(channel_norm(x), F.normalize(x.double(), dim=1), F.normalize(x, dim=1))


def test_bias_by_channel_and_as_one_value() -> None:
    x, gamma = video((1, 6, 2, 3, 5), "channels-last"), torch.linspace(1, 2, 6)
    for bias in (torch.linspace(-1, 1, 6), torch.tensor(0.5)):
        got = channel_norm(x, gamma, bias, scale=6**0.5, silu=True)
        g, b = gamma.view(-1, 1, 1, 1), bias.view(-1, 1, 1, 1)
        assert_accurate(got, wan(x.double(), g.double(), b.double()), wan(x, g, b))


@pytest.mark.parametrize("order", ORDERS)
def test_a_cropped_tensor_is_copied(order: str) -> None:
    x = video((2, 6, 4, 3, 8), order)[:, :, 1:3, :, 2:7]
    got = channel_norm(x, eps=1e-6)
    assert got.stride() == torch.empty_like(x).stride()
    assert_accurate(got, F.normalize(x.double(), dim=1), F.normalize(x, dim=1))


def test_a_zero_vector_stays_zero() -> None:
    x = torch.zeros(1, 4, 2, 2)
    assert torch.equal(channel_norm(x, eps=1e-12), x)


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-19, 1e-12, 1e-3])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_eps_bounds_the_length(dtype: torch.dtype, eps: float) -> None:
    """Rows of zeros, of a length whose square is subnormal, below and above eps."""
    scale = torch.tensor([0.0, 1e-20, 1e-14, 1e-8, 1.0]).view(5, 1, 1, 1)
    x = (video((5, 6, 1, 2, 3), "contiguous") * scale[:, None]).to(dtype)

    def original(x: Tensor) -> Tensor:
        return F.normalize(wide(x), dim=1, eps=eps).to(x.dtype)

    assert_accurate(channel_norm(x, eps=eps), original(x.double()), original(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_nan_and_inf_propagate_as_in_eager(dtype: torch.dtype, bad: float) -> None:
    x = video((1, 5, 1, 2, 3), "contiguous", dtype)
    x[0, 2, 0, 1, 1] = bad
    gamma = torch.ones(5, 1, 1, 1, dtype=dtype)
    got = channel_norm(x, gamma, scale=5**0.5, silu=True)
    assert_accurate(got, wan(x.double(), gamma.double()), wan(x, gamma))


@triton.jit
def product_error(x_ptr, out_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, tl.fma(x, x, -(x * x)))


def fma_rounds_once() -> bool:
    """On a GPU always; Triton's interpreter does so from 3.9 on."""
    if torch.cuda.is_available():
        return True
    x, out = torch.tensor([1.0 + 2**-12]), torch.zeros(1)
    product_error[(1,)](x, out)
    return bool(out.item() != 0)


def test_silu_of_large_values_is_exact_in_fp32() -> None:
    """One channel normalises to its sign, so that gamma alone is what SiLU sees."""
    if not fma_rounds_once():
        pytest.skip("this Triton's interpreter rounds an fma twice, which no GPU does")
    values = torch.tensor([-200.0, -104.0, -88.5, -50.0, -10.0, -1.0, 1e-6, 10.0, 100.0])
    for value in values:
        got = channel_norm(torch.ones(1, 1, 1, 1), value, silu=True)
        assert_accurate(got.flatten(), F.silu(value.double()).view(1), F.silu(value).view(1))


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 70),
        st.integers(1, 3),
        st.integers(1, 6),
        st.integers(1, 6),
    ),
    order=st.sampled_from(sorted(ORDERS)),
    form=st.sampled_from(["l2", "mean"]),
    dtype=st.sampled_from([FP32, FP16, BF16]),
)
def test_any_shape(shape: tuple[int, ...], order: str, form: str, dtype: torch.dtype) -> None:
    x = video(shape, order, dtype)

    def original(x: Tensor) -> Tensor:
        return (
            ltx2(x, 1e-6) if form == "mean" else F.normalize(wide(x), dim=1, eps=1e-6).to(x.dtype)
        )

    got = channel_norm(x, form=form, eps=1e-6)  # type: ignore[arg-type]
    assert got.stride() == torch.empty_like(x).stride()
    assert_accurate(got, original(x.double()), original(x))


@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (1, 4, 0, 2)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    assert channel_norm(torch.empty(shape)).shape == shape


# Refusals


def test_refuses_fp64() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        channel_norm(torch.ones(1, 2, 3, dtype=torch.float64))


def test_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="1-d"):
        channel_norm(torch.ones(3))


def test_refuses_an_unknown_form() -> None:
    with pytest.raises(ValueError, match="form is 'l1'"):
        channel_norm(torch.ones(1, 2, 3), form="l1")  # type: ignore[arg-type]


def test_refuses_a_gamma_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"gamma has shape \(3,\); 2 elements"):
        channel_norm(torch.ones(1, 2, 3), torch.ones(3))


def test_refuses_an_integer_bias() -> None:
    with pytest.raises(TypeError, match=r"bias is torch\.int64"):
        channel_norm(torch.ones(1, 2, 3), None, torch.ones(2, dtype=torch.int64))


def test_refuses_an_output_dtype_that_it_cannot_store() -> None:
    with pytest.raises(TypeError, match=r"out is torch\.float64"):
        channel_norm(torch.ones(1, 2, 3), out_dtype=torch.float64)


def test_refuses_too_many_channels() -> None:
    with pytest.raises(ValueError, match="65537 channels"):
        channel_norm(torch.empty(0, 65537, 1))


# Memory order, and tiles


@pytest.mark.parametrize(
    ("order", "expected"),
    [("contiguous", (2, 6, 60)), ("channels-last", (120, 6, 1)), ("frames outside", (6, 6, 20))],
)
def test_dense_view_finds_the_channels(order: str, expected: tuple[int, int, int]) -> None:
    x = video((2, 6, 3, 4, 5), order)
    view = dense_view(x)
    assert view.tensor is x
    assert (view.outer, view.channels, view.inner) == expected
    assert view.batch_outermost


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 96, 192, 384, 512, 1024, 2048])
def test_tiles_are_powers_of_two_and_cover_the_channels(channels: int, channels_last: bool) -> None:
    tile = choose_tile(channels, channels_last)
    assert tile.chunk & (tile.chunk - 1) == 0 and tile.pixels & (tile.pixels - 1) == 0
    assert -(-channels // tile.chunk) * tile.chunk <= max(1.34 * channels, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x_bias(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """The bias of the convolution before it, added unrounded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 5, 7, generator=generator).to(dtype).to(memory_format=layout)
    bias = torch.randn(20, generator=generator).to(dtype) * 3
    y = channel_norm(x, x_bias=bias, silu=True)
    shifted = x.double() + bias.double()[:, None, None]
    exact = torch.nn.functional.silu(torch.nn.functional.normalize(shifted, dim=1))
    # Triton's interpreter truncates to bfloat16: a whole unit in the last place.
    rtol = {torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=rtol)
    assert y.stride() == x.stride()
