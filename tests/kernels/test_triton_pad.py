"""Padding and nearest upsampling in one pass: bit for bit what F.pad and F.interpolate give."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.convolution.pad_launch import PadTile, choose_tile, pad
from tests.kernels.test_triton_channel_norm import ORDERS, video
from tests.suites import examples

FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
MODES = {"replicate": "replicate", "reflect": "reflect", "zeros": "constant"}
CAUSAL = [1, 1, 1, 1, 2, 0]

# NumPy, under the interpreter, warns of the bit patterns that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def bits(x: Tensor) -> Tensor:
    """x's bit patterns: NaNs and signed zeros compare by them."""
    return x.contiguous().view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    )


def padded(x: Tensor, padding: list[int], mode: str = "replicate") -> Tensor:
    """F.pad of x's bit patterns: it takes floats of 8 bytes, which hold any integer of 4, and half
    of one of 8.
    """
    whole = bits(x).long()
    halves = (whole & 0xFFFFFFFF, whole >> 32)
    low, high = (F.pad(half.double(), padding, mode=MODES[mode]).long() for half in halves)
    return low | (high << 32)


def assert_same(got: Tensor, x: Tensor, padding: list[int], mode: str = "replicate") -> None:
    assert got.dtype == x.dtype
    # On bit patterns: padding copies.
    assert torch.equal(bits(got).long(), padded(x, padding, mode))


def is_channels_last(x: Tensor) -> bool:
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.stride() == torch.empty(x.shape, memory_format=layout).stride()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 16, 40])
def test_causal_padding(channels: int, last: bool, mode: str, order: str) -> None:
    x = video((2, channels, 3, 4, 5), order, BF16)
    got = pad(x, CAUSAL, mode, channels_last=last)
    assert is_channels_last(got) if last else got.is_contiguous()
    assert_same(got, x, CAUSAL, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [True, False])
def test_images(mode: str, last: bool) -> None:
    x = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    for given_x in (x, x.to(memory_format=torch.channels_last)):
        got = pad(given_x, [0, 1, 2, 3], mode, channels_last=last)
        assert is_channels_last(got) if last else got.is_contiguous()
        assert_same(got, x, [0, 1, 2, 3], mode)


@pytest.mark.parametrize(
    "dtype",
    [
        *(
            FP64,
            FP32,
            FP16,
            BF16,
            torch.int8,
            torch.uint8,
            torch.int16,
            torch.int32,
            torch.int64,
            torch.bool,
        ),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_every_bit_of_every_dtype_of_1_to_8_bytes(dtype: torch.dtype, mode: str) -> None:
    draw = torch.Generator().manual_seed(0)
    itemsize = torch.empty(0, dtype=dtype).itemsize
    raw = torch.randint(
        0, 2 if dtype is torch.bool else 256, (1, 3, 2, 4, 5 * itemsize), generator=draw
    )
    x = raw.to(torch.uint8).view(dtype)
    got = pad(x, [1, 1, 1, 1, 1, 0], mode)
    # Random bytes contain NaNs of every kind in the smaller dtypes.
    assert_same(got, x, [1, 1, 1, 1, 1, 0], mode)


def test_nans_keep_their_payload_and_zeros_their_sign() -> None:
    patterns = torch.tensor([0x7FC0, 0x7F81, 0xFFFF, 0x8000, 0x0000, 0x0001], dtype=torch.int32).to(
        torch.int16
    )
    x = patterns.view(BF16).reshape(1, 1, 1, 2, 3)
    assert_same(pad(x, CAUSAL, "replicate"), x, CAUSAL)


def test_strides_of_any_kind() -> None:
    for x in (
        video((2, 6, 4, 3, 8), "channels-last")[..., 2:7],
        video((2, 6, 4, 3, 8), "contiguous").transpose(3, 4),
        video((1, 6, 1, 1, 5), "contiguous").expand(2, 6, 4, 3, 5),
        video((2, 6, 4, 3, 8), "contiguous")[:, ::2, 1:, ::2],
    ):
        for last in (True, False):
            assert_same(pad(x, CAUSAL, "replicate", channels_last=last), x, CAUSAL)


def causally_upsampled(x: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """HunyuanVideo: the first frame is enlarged, and not repeated."""
    first, others = x[:, :, :1], x[:, :, 1:]
    first = F.interpolate(first.squeeze(2), scale_factor=factors[1:], mode="nearest").unsqueeze(2)
    if not others.shape[2]:
        return first
    return torch.cat(
        [first, F.interpolate(others.contiguous(), scale_factor=factors, mode="nearest")], 2
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (4, 1, 2)])
def test_upsampling_of_all_but_the_first_frame(
    factors: tuple[int, int, int], frames: int, order: str
) -> None:
    x = video((2, 20, frames, 3, 4), order, BF16)
    got = pad(x, CAUSAL, "replicate", repeats=factors, skipped=factors[0] - 1)
    assert is_channels_last(got)
    assert_same(got, causally_upsampled(x.float(), factors).to(BF16), CAUSAL)


@pytest.mark.parametrize("mode", MODES)
def test_upsampling_of_images(mode: str) -> None:
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    got = pad(x, [1, 2, 0, 1], mode, repeats=(3, 2))
    assert_same(got, x.repeat_interleave(3, 2).repeat_interleave(2, 3), [1, 2, 0, 1], mode)


@pytest.mark.each_value
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("tile", itertools.product((4, 16, 32), (8, 64)), ids=str)
def test_every_tile_covers_everything(tile: tuple[int, int], order: str, last: bool) -> None:
    x = video((1, 20, 2, 5, 6), order)
    got = pad(x, CAUSAL, "replicate", channels_last=last, tile=PadTile(*tile, 4))
    assert_same(got, x, CAUSAL)


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 9, 3, 5, 5)]),
    padding=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    repeats=st.tuples(*[st.integers(1, 3)] * 3),
    order=st.sampled_from(sorted(ORDERS)),
    dtype=st.sampled_from([FP32, BF16, torch.int8, torch.int64]),
    mode=st.sampled_from(sorted(MODES)),
    last=st.booleans(),
)
@settings(max_examples=examples(60), deadline=None)
def test_any_padding(
    shape: tuple[int, ...],
    padding: list[int],
    repeats: tuple[int, ...],
    order: str,
    dtype: torch.dtype,
    mode: str,
    last: bool,
) -> None:
    x = (video(shape, order) * 40).to(dtype)
    enlarged = x
    for dim, factor in enumerate(repeats, start=2):
        enlarged = enlarged.repeat_interleave(factor, dim)
    if mode == "reflect":
        padding = [min(p, enlarged.shape[4 - i // 2] - 1) for i, p in enumerate(padding)]
    got = pad(x, padding, mode, repeats=repeats, channels_last=last)
    assert is_channels_last(got) if last else got.is_contiguous()
    assert_same(got, enlarged, padding, mode)


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_skipped_frame_needs_a_repeated_one(skipped: int) -> None:
    x = video((1, 2, 2, 2, 2), "contiguous")
    if skipped:
        with pytest.raises(ValueError, match="skipped=1 and the frames are repeated 1 times"):
            pad(x, CAUSAL, "replicate", skipped=skipped)
    else:
        assert_same(pad(x, CAUSAL, "replicate", skipped=skipped), x, CAUSAL)


def test_an_empty_batch() -> None:
    assert pad(torch.empty(0, 3, 2, 4, 5), CAUSAL, "replicate").shape == (0, 3, 4, 6, 7)


def test_zeros_round_nothing() -> None:
    got = pad(torch.empty(1, 3, 0, 4, 5), CAUSAL, "zeros")
    assert torch.equal(got, torch.zeros(1, 3, 2, 6, 7))


def test_64_bit_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2^31 elements, which no test can afford: the same kernel with its wide offsets, on
    few.
    """
    monkeypatch.setattr("rocm_passes.kernels.triton.convolution.pad_launch.INT32_MAX", 10)
    x = video((2, 20, 3, 4, 5), "channels-last", BF16)
    assert_same(pad(x, CAUSAL, "replicate"), x, CAUSAL)


@pytest.mark.parametrize(
    ("padding", "mode", "message"),
    [
        ([1, 1], "replicate", "6 sizes are needed"),
        ([1, 1, 1, 1, -1, 0], "replicate", "negative"),
        (CAUSAL, "circular", "mode is 'circular'"),
        ([5, 0, 0, 0, 0, 0], "reflect", "reflects 5 of 5"),
    ],
)
def test_refuses(padding: list[int], mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad(torch.zeros(1, 2, 3, 4, 5), padding, mode)


def test_refuses_to_replicate_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to replicate"):
        pad(torch.empty(1, 3, 0, 4, 5), CAUSAL, "replicate")


def test_refuses_other_ranks_and_repeats() -> None:
    with pytest.raises(ValueError, match="3-d"):
        pad(torch.zeros(2, 3, 4), [1, 1], "replicate")
    with pytest.raises(ValueError, match="repeats"):
        pad(torch.zeros(1, 2, 3, 4, 5), CAUSAL, "replicate", repeats=(2, 2))
    with pytest.raises(ValueError, match="repeats"):
        pad(torch.zeros(1, 2, 3, 4, 5), CAUSAL, "replicate", repeats=(0, 2, 2))


def test_refuses_elements_of_16_bytes() -> None:
    with pytest.raises(TypeError, match="complex128"):
        pad(torch.zeros(1, 2, 3, 4, 5, dtype=torch.complex128), CAUSAL, "replicate")


def test_tiles_move_8_kib_whatever_the_dtype() -> None:
    for itemsize in (1, 2, 4, 8):
        for read_last, write_last in itertools.product((True, False), repeat=2):
            for channels in (3, 16, 96, 512):
                tile = choose_tile(channels, 10**6, itemsize, read_last, write_last)
                assert tile.channels * tile.pixels * itemsize <= 8192
