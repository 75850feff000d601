"""The convolution kernel against float64: padding, cached frames, upsampling, epilogues."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.convolution.implicit_gemm import conv as conv_package
from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv, max_offset, refusal
from rocm_passes.kernels.triton.convolution.implicit_gemm.conv import pack_weight
from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import Tile, choose_tile
from rocm_passes.kernels.triton.launch import written_down
from rocm_passes.target import triton_is_interpreted
from tests.kernels.conv_reference import check, kernel, reference, video
from tests.on_the_gpu import where_kernels_run
from tests.suites import examples

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
#: A step of a program takes 10 ms in the interpreter: few programs and taps, ragged in every dim.
SMALL = Tile(32, 32, 32, warps=4, stages=2, group=2)
CAUSAL = Conv(padding=((2, 0), (1, 1), (1, 1)))
SPATIAL = Conv(padding=((0, 0), (1, 1), (1, 1)))

conv3d = where_kernels_run(conv_package.conv3d)
conv2d = where_kernels_run(conv_package.conv2d)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def compare(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, tile: Tile | None = SMALL, **call: Any
) -> None:
    check(conv3d(x, weight, bias, tile=tile, **call), reference(x, weight, bias, **call))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("layout", ["channels-last", "contiguous", "sliced"])
def test_dtypes_and_layouts(dtype: torch.dtype, layout: str) -> None:
    x = video((2, 24, 1, 5, 7), dtype, layout)
    compare(x, kernel((20, 24, 3, 3, 3), dtype), torch.randn(20).to(dtype), conv=CAUSAL)


@pytest.mark.parametrize("channels, out", [(1, 1), (3, 17), (16, 3), (33, 33)])
def test_any_number_of_channels(channels: int, out: int) -> None:
    x = video((1, channels, 1, 4, 5), BF16)
    compare(x, kernel((out, channels, 3, 3, 3), BF16), conv=CAUSAL)


SIZES: list[tuple[int, int, int]] = [
    (3, 1, 1),
    (1, 3, 3),
    (1, 1, 1),
    (2, 2, 2),
    (2, 1, 5),
    (1, 6, 6),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_kernel_sizes(size: tuple[int, int, int], padded: bool) -> None:
    x = video((1, 5, 3, 6, 7), FP16)
    (t, h, w) = ((k // 2, k - 1 - k // 2) for k in size)
    compare(x, kernel((6, 5, *size), FP16), conv=Conv(padding=(t, h, w)) if padded else None)


@pytest.mark.pairwise
@pytest.mark.parametrize("time", ["zeros", "replicate"])
@pytest.mark.parametrize("space", ["zeros", "replicate"])
@pytest.mark.parametrize(
    "padding",
    [((2, 0), (1, 1), (1, 1)), ((1, 1), (0, 1), (2, 0)), ((3, 2), (3, 3), (0, 0))],
    ids=str,
)
def test_padding(padding: Any, space: Any, time: Any) -> None:
    x = video((1, 6, 2, 4, 5), BF16)
    conv = Conv(padding=padding, space=space, time=time)
    compare(x, kernel((7, 6, 3, 2, 2), BF16), conv=conv)


@pytest.mark.pairwise
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 3, 1)])
@pytest.mark.parametrize("dilation", [(1, 1, 1), (2, 2, 3)])
@pytest.mark.parametrize("space", ["zeros", "replicate"])
@pytest.mark.parametrize("padding", [((2, 1), (1, 2), (0, 3)), ((0, 0),) * 3], ids=str)
def test_stride_and_dilation(stride: Any, dilation: Any, padding: Any, space: Any) -> None:
    x = video((1, 6, 4, 6, 7), FP16)
    conv = Conv(stride=stride, dilation=dilation, padding=padding, space=space)
    compare(x, kernel((7, 6, 2, 2, 2), FP16), conv=conv)


@pytest.mark.pairwise
@pytest.mark.parametrize("frames", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", ["channels-last", "contiguous", "sliced"])
@pytest.mark.parametrize("time", ["zeros", "replicate"])
def test_frames_in_front(frames: int, layout: str, time: Any) -> None:
    """Cached ones, with padding before them where they are fewer than the kernel sees."""
    x = video((2, 8, 1, 4, 5), BF16, "sliced" if frames == 1 else "channels-last")
    front = video((2, 8, frames, 4, 5), BF16, layout)
    conv = replace(SPATIAL, padding=((max(2 - frames, 0), 0), (1, 0), (0, 1)), time=time)
    compare(x, kernel((9, 8, 3, 2, 2), BF16), conv=conv, front=front)


def test_a_chunk_without_frames() -> None:
    x, front = video((1, 8, 0, 4, 5), BF16), video((1, 8, 2, 4, 5), BF16)
    compare(x, kernel((9, 8, 2, 2, 2), BF16), conv=SPATIAL, front=front)


def test_the_last_frames_of_a_chunk_in_front_of_the_next() -> None:
    """As causal decoders cache them: a view of the chunk before."""
    chunk, weight = video((1, 8, 5, 4, 5), BF16), kernel((9, 8, 3, 2, 2), BF16)
    whole = conv3d(chunk, weight, conv=CAUSAL, tile=SMALL)
    second = conv3d(chunk[:, :, 3:], weight, conv=SPATIAL, front=chunk[:, :, 1:3], tile=SMALL)
    assert torch.equal(whole[:, :, 3:], second)


@pytest.mark.parametrize("space", ["zeros", "replicate"])
@pytest.mark.parametrize(
    "upsample, skipped", [((1, 2, 2), 0), ((2, 1, 1), 1), ((2, 2, 2), 0), ((3, 3, 1), 2)], ids=str
)
def test_upsampling(upsample: Any, skipped: int, space: Any) -> None:
    x = video((1, 6, 2, 3, 3), BF16)
    padding = ((1, 0), (1, 1), (1, 0))
    conv = Conv(padding=padding, upsample=upsample, skipped=skipped, space=space, time=space)
    compare(x, kernel((7, 6, 2, 3, 2), BF16), conv=conv)


def test_frames_in_front_of_upsampling_in_space() -> None:
    conv = replace(SPATIAL, upsample=(1, 2, 2))
    x, front = video((1, 6, 1, 4, 3), BF16), video((1, 6, 1, 4, 3), BF16)
    compare(x, kernel((7, 6, 2, 3, 3), BF16), conv=conv, front=front)


@pytest.mark.pairwise
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layout", [None, "channels-last", "contiguous", "sliced"])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_epilogues(with_bias: bool, layout: str | None, silu: bool, dtype: torch.dtype) -> None:
    bias = torch.randn(20) if with_bias else None
    residual = None if layout is None else video((2, 20, 1, 4, 5), dtype, layout)
    x, weight = video((2, 6, 1, 4, 5), dtype), kernel((20, 6, 1, 1, 1), dtype)
    compare(x, weight, bias, residual=residual, silu=silu)


TILES = (
    Tile(16, 16, 16, warps=1, stages=1, group=1),
    Tile(32, 16, 16, warps=2, stages=3, group=3),
    Tile(16, 32, 16, warps=4, stages=2, more_columns=16),
    Tile(64, 32, 32, warps=4, stages=2, more_columns=16, group=64),
)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("channels", [16, 40])
def test_tiles(tile: Tile, channels: int) -> None:
    """Several blocks of pixels and of channels, the last of each ragged."""
    x, weight = video((1, channels, 1, 5, 8), BF16), kernel((70, channels, 1, 2, 2), BF16)
    residual = video((1, 70, 1, 6, 9), BF16)
    conv = SPATIAL
    compare(x, weight, torch.randn(70), conv=conv, tile=tile, residual=residual, silu=True)


def test_square_sizes() -> None:
    """Every size the same: no dim can be taken for another."""
    x, residual = video((3,) * 5, FP32, "contiguous"), video((3,) * 5, FP32)
    compare(x, kernel((3,) * 5, FP32), torch.randn(3), conv=CAUSAL, residual=residual)


def test_sizes_of_one() -> None:
    x = video((1, 1, 1, 1, 1), FP32)
    compare(x, kernel((1, 1, 3, 3, 3), FP32), torch.randn(1), conv=CAUSAL)
    compare(video((1, 4, 1, 1, 6), FP32), kernel((2, 4, 1, 1, 1), FP32))


small = st.integers(1, 2)


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 20, 3, 5, 6)]),
    out=st.integers(1, 20),
    size=st.tuples(small, st.integers(1, 3), small),
    stride=st.tuples(small, small, small),
    dilation=st.tuples(small, small, small),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 3))] * 3),
    fills=st.tuples(*[st.sampled_from(["zeros", "replicate"])] * 2),
    upsample=st.tuples(small, small, small),
    front=st.integers(0, 2),
    layout=st.sampled_from(["channels-last", "contiguous", "sliced"]),
)
@settings(max_examples=examples(50), deadline=None)
def test_any_call(
    shape: Any,
    out: int,
    size: Any,
    stride: Any,
    dilation: Any,
    padding: Any,
    fills: Any,
    upsample: Any,
    front: int,
    layout: str,
) -> None:
    """Taken and right, or refused because the result would be empty."""
    upsample = (1, *upsample[1:]) if front else upsample
    conv = Conv(stride, dilation, padding, *fills, upsample, upsample[0] - 1)
    n, c, _, h, w = shape
    x, weight = video(shape, FP32, layout), kernel((out, c, *size), FP32)
    before = video((n, c, front, h, w), FP32, layout) if front else None
    if min(conv.out(x, size, before)) < 1:
        assert "it is empty" in str(refusal(x, weight, conv=conv, front=before))
    else:
        compare(x, weight, conv=conv, front=before)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_a_scene_that_hardly_moves(dtype: torch.dtype) -> None:
    """Temporal taps cancel: the sum is rounded once, so the error is conv3d's own."""
    channels, tile = 24, replace(SMALL, rows=64)
    weight = kernel((channels, channels, 3, 3, 3), dtype)
    weight[:, :, 2], weight[:, :, 1] = -weight[:, :, 0], weight[:, :, 1] * 0.02
    still = torch.randn(1, channels, 1, 6, 6).expand(1, channels, 4, 6, 6)
    x = (still * (1 + 0.002 * torch.randn(1, channels, 4, 6, 6))).to(dtype)
    exact = reference(x, weight, conv=CAUSAL)[:, :, 2:]

    def error(y: Tensor) -> float:
        return ((y.double()[:, :, 2:] - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()

    eager = error(F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), weight))
    if dtype is BF16 and triton_is_interpreted():
        # The interpreter truncates to bf16, where GPUs round: the sum is rounded here.
        ours = error(conv3d(x.float(), weight.float(), conv=CAUSAL, tile=tile).to(dtype))
    else:
        ours = error(conv3d(x, weight, conv=CAUSAL, tile=tile))
    assert ours <= 1.5 * eager, f"{ours:.2e}, eager {eager:.2e}"


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("upsample", [1, 2])
def test_conv2d(dtype: torch.dtype, upsample: int) -> None:
    x = torch.randn(2, 6, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = kernel((9, 6, 3, 3), dtype), torch.randn(9).to(dtype)
    conv = replace(SPATIAL, upsample=(1, upsample, upsample))
    residual = torch.randn(2, 9, 4 * upsample, 5 * upsample).to(dtype)
    y = conv2d(x, weight, bias, conv=conv, residual=residual, silu=True, tile=SMALL)
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = reference(
        x.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        conv=conv,
        residual=residual.unsqueeze(2),
        silu=True,
    )
    check(y.unsqueeze(2), exact)
    with pytest.raises(ValueError, match="x has 5 dims and the weight 4; 4 of each are needed"):
        conv2d(x.unsqueeze(2), weight)


def test_no_samples() -> None:
    x = torch.empty(0, 4, 2, 3, 3)
    assert conv3d(x, kernel((5, 4, 3, 3, 3), FP32), conv=CAUSAL).shape == (0, 5, 2, 3, 3)


def test_a_channels_last_weight_is_not_copied() -> None:
    weight = kernel((5, 4, 3, 3, 3), FP32).contiguous(memory_format=torch.channels_last_3d)
    assert pack_weight(weight).data_ptr() == weight.data_ptr()
    assert torch.equal(pack_weight(weight.contiguous()), pack_weight(weight))


def test_one_launch_reads_tensors_where_they_lie() -> None:
    """As Inductor launches it: nothing is computed or copied before."""
    last = torch.channels_last_3d
    x, front = video((1, 8, 2, 4, 5), BF16), video((1, 8, 2, 4, 5), BF16)
    weight = kernel((9, 8, 3, 3, 3), BF16).contiguous(memory_format=last)
    with written_down() as launches:
        y = conv_package.conv3d(x, weight, conv=SPATIAL, front=front[:, :, :1])
    (only,) = launches
    pointers = [only.arguments[n].data_ptr() for n in ("x_ptr", "front_ptr", "w_ptr", "out_ptr")]
    assert pointers == [t.data_ptr() for t in (x, front, weight, y)]


def test_offsets_of_64_bits() -> None:
    """A frame that spans more than 2^31 elements of memory, of which few are read."""

    def offsets(row: int, channels: int = 4, residual_row: int = 1) -> int:
        x = torch.empty_strided((1, 2, 1, 3, 2), (0, 1, 0, row, 2), device="meta")
        weight = torch.empty(channels, 2, 1, 3, 3, device="meta")
        strides = (0, 1, 0, residual_row, 4)
        residual = torch.empty_strided((1, channels, 1, 3, 2), strides, device="meta")
        return max_offset(SPATIAL, x, weight, residual, (1, 3, 2), SMALL)

    assert offsets(4) < 2**12
    assert offsets(2**30) > 2**31
    assert offsets(4, channels=2**27) > 2**31
    assert offsets(4, residual_row=2**30) > 2**31


@pytest.mark.parametrize("space", ["zeros", "replicate"])
def test_wide_offsets_compute_the_same(space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rocm_passes.kernels.triton.convolution.implicit_gemm import conv as module

    monkeypatch.setattr(module, "INT32_MAX", 0)
    x, weight = video((2, 6, 1, 4, 5), BF16), kernel((40, 6, 3, 3, 3), BF16)
    tile = replace(SMALL, more_columns=16)
    conv, residual = replace(CAUSAL, space=space), video((2, 40, 1, 4, 5), BF16)
    compare(x, weight, torch.randn(40), conv=conv, residual=residual, tile=tile)


ARCHITECTURES = ("sm_90", "sm_86", "gfx942", "gfx950", "gfx1100", "gfx1201", "")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_problem_has_a_tile(arch: str, itemsize: int) -> None:
    for pixels, channels, out in itertools.product(
        (1, 6240, 2**24), (1, 3, 96, 1024), (1, 3, 96, 384, 8192)
    ):
        tile = choose_tile(arch, itemsize, pixels, channels, out)
        assert tile.columns + tile.more_columns >= min(out, 16)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("out", [96, 128, 192, 256, 384, 512, 768])
def test_no_columns_are_padded(arch: str, out: int) -> None:
    for pixels in (6240, 2**20):
        tile = choose_tile(arch, 2, pixels, 384, out)
        assert out % (tile.columns + tile.more_columns) == 0


def test_the_table_is_used_where_no_tile_is_given() -> None:
    compare(video((1, 20, 2, 6, 7), BF16), kernel((20, 20, 3, 3, 3), BF16), conv=CAUSAL, tile=None)


X, W = torch.empty(1, 4, 3, 5, 5), torch.empty(6, 4, 3, 3, 3)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": X.double()}, "x is torch.float64; float32, float16 or bfloat16 is needed"),
    "weight dtype": (
        {"weight": W.half()},
        "weight is torch.float16 and x torch.float32; one dtype is needed",
    ),
    "front dtype": (
        {"front": X.half()},
        "front is torch.float16 and x torch.float32; one dtype is needed",
    ),
    "bias dtype": ({"bias": torch.empty(6).double()}, "bias is torch.float64"),
    "device": ({"weight": W.to("meta")}, "weight lies on meta and x on cpu"),
    "dims": ({"x": X[0]}, "x has 4 dims and the weight 5; 5 of each are needed"),
    "groups": ({"conv": Conv(groups=2)}, "groups=2; 1 is needed"),
    "channels": ({"x": torch.empty(1, 8, 3, 5, 5)}, "the weight takes 4 channels and x has 8"),
    "empty weight": ({"x": X[:, :0], "weight": W[:, :0]}, "it is empty"),
    "bias shape": ({"bias": torch.empty(4)}, "the bias has shape (4,); (6,) is needed"),
    "front shape": ({"front": torch.empty(1, 4, 2, 5, 6)}, "they differ in more than frames"),
    "stride": ({"conv": Conv(stride=(1, 0, 1))}, "stride=(1, 0, 1); at least 1 is needed"),
    "dilation": ({"conv": Conv(dilation=(0, 1, 1))}, "dilation=(0, 1, 1); at least 1 is needed"),
    "upsample": ({"conv": Conv(upsample=(1, 1, 0))}, "upsample=(1, 1, 0); at least 1 is needed"),
    "cropping": ({"conv": Conv(padding=((0, 0), (-1, 0), (0, 0)))}, "it crops"),
    "fill": ({"conv": Conv(space="reflect")}, "space='reflect': padding is of zeros or replicates"),  # type: ignore[arg-type]
    "skipped": (
        {"conv": Conv(upsample=(2, 1, 1), skipped=2)},
        "skipped=2 of frames repeated 2 times",
    ),
    "front of upsampling": (
        {"conv": Conv(upsample=(2, 1, 1)), "front": X},
        "frames in front of an upsampling in time",
    ),
    "empty result": ({"x": X[:, :, :2]}, "it is empty"),
    "no pixels": ({"x": X[:, :, :, :0], "conv": CAUSAL}, "it is empty"),
    "residual": (
        {"residual": X},
        "the residual has shape (1, 4, 3, 5, 5); (1, 6, 1, 3, 3) is needed",
    ),
    "pixels": (
        {"x": X[:, :, :, :1, :1].expand(1, 4, 3, 65536, 65536)},
        "more than 32 bits count",
    ),
    "programs": (
        {"x": X[:1, :, :1, :1, :1].expand(2**20, 4, 2**20, 3, 3)},
        "more than a grid has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    changed, reason = REFUSED[case]
    call: dict[str, Any] = {"x": X, "weight": W, **changed}
    assert reason in str(refusal(**call))
    with pytest.raises(ValueError) as raised:
        conv_package.conv3d(**call)
    assert reason in str(raised.value)


def test_a_call_of_the_idiom() -> None:
    conv = Conv.of_idiom(zeros=(1, 0), stride=(2, 1, 1), padding=(1, 0), dilation=(1, 1, 2))
    ends = ((1, 0), (1, 1), (0, 0))
    assert conv == Conv(stride=(2, 1, 1), dilation=(1, 1, 2), padding=ends)


def test_symbolic_sizes_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    x = mode.from_tensor(X)
    if all(isinstance(s, int) for s in x.shape):
        pytest.skip("this torch makes no symbolic sizes here")
    assert refusal(x, mode.from_tensor(W)) == "x has symbolic sizes"


def test_a_plain_call_is_taken() -> None:
    assert refusal(X, W, torch.empty(6), conv=CAUSAL, front=X) is None
