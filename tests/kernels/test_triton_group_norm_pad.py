"""GroupNorm and SiLU into a padded tensor: the numbers of `group_norm`, each where F.pad
puts it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.convolution.pad_launch import PadTile
from tests.kernels.kernel_calls import group_norm, group_norm_pad
from tests.kernels.norm_reference import assert_accurate
from tests.kernels.test_triton_channel_norm import ORDERS, video
from tests.kernels.test_triton_group_norm import affine, original
from tests.kernels.test_triton_pad import CAUSAL, MODES, is_channels_last
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def padded(x: Tensor, padding: list[int], mode: str = "replicate") -> Tensor:
    return F.pad(x, padding, mode=MODES[mode])


def check(
    x: Tensor,
    groups: int,
    padding: list[int],
    mode: str,
    silu: bool,
    *,
    few: bool = False,
    **given_too: object,
) -> Tensor:
    """As accurate as the norm has to be, and, by the same interpreter, the same bits as the norm's
    kernel.

    few: there may be only some dozens of elements, and the original's largest error among them
    small by luck. A value is rounded five times on its way (deviation, rstd, weight, bias, SiLU):
    2.9 came out 3 units off beside the original's 1.3, and -0.006, where weight and bias cancel,
    0.6 units of the bias beside 0.5.
    """
    w, b = affine(x.shape[1], x.dtype)
    units, terms = (4.0, b.abs().max().item()) if few else (1.0, 0.0)
    got = group_norm_pad(x, groups, w, b, 1e-6, padding, mode, silu=silu, **given_too)  # type: ignore[arg-type]
    exact = padded(original(x.double(), groups, w.double(), b.double(), silu), padding, mode)
    assert_accurate(
        got, exact, padded(original(x, groups, w, b, silu), padding, mode), units, terms
    )
    if not torch.cuda.is_available():
        assert torch.equal(got, padded(group_norm(x, groups, w, b, 1e-6, silu=silu), padding, mode))
    return got


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (32, 32)])
def test_causal_padding(
    channels: int, groups: int, last: bool, mode: str, dtype: torch.dtype, order: str
) -> None:
    x = video((2, channels, 3, 4, 5), order, dtype)
    got = check(x, groups, CAUSAL, mode, silu=True, channels_last=last)
    assert is_channels_last(got) if last else got.is_contiguous()


def test_images_and_no_silu() -> None:
    x = torch.randn(2, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    for given_x in (x, x.to(memory_format=torch.channels_last)):
        check(given_x, 4, [0, 1, 2, 3], "reflect", silu=False)


def test_other_strides() -> None:
    for x in (
        video((2, 6, 4, 3, 8), "channels-last")[..., 2:7],
        video((3, 6, 2, 2, 4), "contiguous").transpose(0, 2),
    ):
        check(x, 3, CAUSAL, "replicate", silu=True)


def test_the_bias_of_the_convolution_before_it() -> None:
    x, x_bias = video((2, 6, 2, 3, 5), "channels-last", BF16), affine(6, BF16)[1]
    got = group_norm_pad(x, 3, None, None, 1e-6, CAUSAL, "replicate", silu=True, x_bias=x_bias)
    shifted = x.double() + x_bias.double().view(-1, 1, 1, 1)
    exact = padded(original(shifted, 3, None, None, True), CAUSAL)
    assert_accurate(got, exact, padded(original(shifted.to(BF16), 3, None, None, True), CAUSAL))


def test_another_dtype_of_the_result() -> None:
    x = video((1, 6, 2, 3, 5), "channels-last")
    got = group_norm_pad(x, 3, None, None, 1e-6, CAUSAL, "zeros", out_dtype=BF16)
    exact = padded(original(x.double(), 3, None, None), CAUSAL, "zeros")
    assert_accurate(got, exact, padded(original(x, 3, None, None).to(BF16), CAUSAL, "zeros"))


@pytest.mark.each_value
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("last", [True, False])
def test_every_tile_covers_everything(order: str, last: bool) -> None:
    x = video((2, 20, 3, 4, 5), order)
    check(x, 4, CAUSAL, "replicate", silu=True, channels_last=last, tile=PadTile(16, 8, 4))


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 3, 3, 4, 4)]),
    padding=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    order=st.sampled_from(sorted(ORDERS)),
    dtype=st.sampled_from([FP32, BF16]),
    mode=st.sampled_from(sorted(MODES)),
    last=st.booleans(),
)
@example(
    shape=(1, 2, 1, 1, 2),
    padding=[0] * 6,
    order="channels-last",
    dtype=FP32,
    mode="reflect",
    last=False,
)
@settings(max_examples=examples(30), deadline=None)
def test_any_padding(
    shape: tuple[int, ...],
    padding: list[int],
    order: str,
    dtype: torch.dtype,
    mode: str,
    last: bool,
) -> None:
    n, c, *spatial = shape
    x = video((n, 4 * c, *spatial), order, dtype)
    if mode == "reflect":
        padding = [min(p, x.shape[4 - i // 2] - 1) for i, p in enumerate(padding)]
    # A group of one element is 0 / sqrt(eps) of a rounding's error; two are enough.
    check(x, 2, padding, mode, silu=True, few=True, channels_last=last)


def test_64_bit_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.kernels.triton.convolution.pad_launch.INT32_MAX", 10)
    check(video((2, 20, 3, 4, 5), "channels-last", BF16), 4, CAUSAL, "replicate", silu=True)


def test_an_empty_batch() -> None:
    x = torch.empty(0, 4, 2, 4, 5)
    assert group_norm_pad(x, 2, None, None, 1e-6, CAUSAL, "replicate").shape == (0, 4, 4, 6, 7)


def test_refuses() -> None:
    x = torch.zeros(1, 4, 2, 3, 3)
    with pytest.raises(ValueError, match="do not divide"):
        group_norm_pad(x, 3, None, None, 1e-6, CAUSAL, "replicate")
    with pytest.raises(ValueError, match="mode is 'circular'"):
        group_norm_pad(x, 2, None, None, 1e-6, CAUSAL, "circular")
    with pytest.raises(TypeError, match="float64"):
        group_norm_pad(x.double(), 2, None, None, 1e-6, CAUSAL, "replicate")
