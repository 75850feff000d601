"""Every lowering of conv3d is exact algebra: float64 against torch's conv3d on the padded, joined
input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels import register_lowerings
from rocm_passes.kernels.aten.conv3d_write import TILE_FRAMES, tiles_of_taps
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.time_axis import TimeAxis
from rocm_passes.options import Options
from rocm_passes.policy import verdict
from rocm_passes.policy.memory import usual_memory_mib
from rocm_passes.rewrite.choose import asked
from rocm_passes.target import Target
from tests.suites import examples

register_lowerings()
LOWERINGS = CONV3D.lowerings
BY_NAME = {low.name: low for low in LOWERINGS}
CPU = Target("cpu", "", "CPU", "2.11", None)


def call(
    frames: tuple[int, ...] = (3,),
    *,
    channels: int = 4,
    out: int = 5,
    size: tuple[int, int] = (5, 6),
    batch: int = 1,
    kernel: tuple[int, int, int] = (3, 3, 3),
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int, int] = (1, 1, 1),
    zeros: tuple[int, int] = (0, 0),
    groups: int = 1,
    bias: bool = True,
    channels_last: bool = False,
    compute: torch.dtype | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Conv3d:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    return Conv3d(
        x=tuple(normal(batch, channels, t, *size) for t in frames),
        weight=normal(out, channels // groups, *kernel) / (channels * kernel[0]) ** 0.5,
        bias=normal(out) if bias else None,
        zeros=zeros,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels_last=channels_last,
        compute=compute,
        absorbed=True,
    )


def with_tensors(change: Callable[[torch.Tensor], torch.Tensor], c: Conv3d) -> Conv3d:
    """The call with every tensor changed."""
    bias = None if c.bias is None else change(c.bias)
    return replace(c, x=tuple(change(piece) for piece in c.x), weight=change(c.weight), bias=bias)


def plain(c: Conv3d) -> torch.Tensor:
    """What the graph computed before: everything padded and joined by copies."""
    h, w = c.padding
    x = F.pad(torch.cat(c.x, 2), [w, w, h, h, *c.zeros])
    return F.conv3d(x, c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


def has_output(c: Conv3d) -> bool:
    x = c.x[0]
    sizes = (
        sum(p.shape[2] for p in c.x) + sum(c.zeros),
        *(s + 2 * p for s, p in zip(x.shape[3:], c.padding, strict=True)),
    )
    extents = [d * (k - 1) + 1 for d, k in zip(c.dilation, c.weight.shape[2:], strict=True)]
    return all(s >= e for s, e in zip(sizes, extents, strict=True))


small = st.integers(1, 3)


@st.composite
def calls(draw: Any) -> Conv3d:
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.tuples(small, small, small))
    ones = st.just((1, 1, 1))
    c = call(
        draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)),
        channels=groups * draw(small),
        out=groups * draw(small),
        size=draw(st.tuples(st.integers(2, 6), st.integers(2, 6))),
        batch=draw(st.integers(1, 2)),
        kernel=kernel,
        stride=draw(st.one_of(ones, st.just(kernel), st.tuples(small, small, small))),
        padding=draw(st.one_of(st.just((0, 0)), st.tuples(st.integers(0, 2), st.integers(0, 2)))),
        dilation=draw(st.one_of(ones, st.tuples(small, small, small))),
        zeros=draw(st.one_of(st.just((0, 0)), st.tuples(st.integers(0, 3), st.integers(0, 2)))),
        groups=groups,
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
    )
    assume(has_output(c))
    return c


@settings(max_examples=examples(400), deadline=None)
@given(calls())
def test_every_lowering_is_exact(c: Conv3d) -> None:
    expected = plain(c)
    taken = [low for low in LOWERINGS if low.refuses(c, CPU) is None]
    assert "direct" in [low.name for low in taken]
    for low in taken:
        got = low.write(Eager(), c)
        assert got.shape == expected.shape, low.name
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=low.name)


@settings(max_examples=examples(300), deadline=None)
@given(
    frames=st.integers(1, 6), front=st.integers(0, 4), back=st.integers(0, 4),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3), dilation=st.integers(1, 3),
)  # fmt: skip
def test_taps_are_those_that_see_a_frame(**sizes: int) -> None:
    axis = TimeAxis(**sizes)
    assume(axis.out > 0)
    real = range(axis.front, axis.front + axis.frames)
    for tap in range(axis.kernel):
        reads = {o: o * axis.stride + tap * axis.dilation for o in range(axis.out)}
        fed = [o for o, frame in reads.items() if frame in real]
        found = [t for t in axis.taps() if t.index == tap]
        if not fed:
            assert found == []
        else:
            (t,) = found
            assert list(range(t.first, t.first + t.count)) == fed
            assert t.start == reads[t.first] - axis.front


@settings(max_examples=examples(300), deadline=None)
@given(
    frames=st.integers(1, 12), front=st.integers(0, 4), back=st.integers(0, 4),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3), dilation=st.integers(1, 3),
)  # fmt: skip
def test_tiles_of_taps_read_what_the_taps_read(**sizes: int) -> None:
    axis = TimeAxis(**sizes)
    assume(axis.out > 0)

    def reads(taps: Any, first: int) -> set[tuple[int, int, int]]:
        """Tap, output, frame read for it."""
        return {
            (t.index, first + t.first + i, t.start + i * axis.stride)
            for t in taps
            for i in range(t.count)
        }

    found: set[tuple[int, int, int]] = set()
    first = 0
    for taps, count in tiles_of_taps(axis):
        assert all(t.first >= 0 and t.count > 0 and t.first + t.count <= count for t in taps)
        found |= reads(taps, first)
        first += count
    assert first == axis.out
    assert found == reads(axis.taps(), 0)


@pytest.mark.parametrize(
    ("out", "tiles"),
    [(1, [1]), (2, [1, 1]), (3, [1] * 3), (4, [1] * 4), (5, [4, 1]), (9, [4, 4, 1])],
)
def test_of_a_few_frames_each_is_a_tile_of_taps(out: int, tiles: list[int]) -> None:
    axis = TimeAxis(frames=out, front=2, back=0, kernel=3, stride=1, dilation=1)
    assert [count for _, count in tiles_of_taps(axis)] == tiles


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("frames", [(2, 4), (2, 9)])
def test_tiled_taps_are_the_sum_in_the_layout_of_the_call(
    frames: tuple[int, ...], channels_last: bool, batch: int
) -> None:
    c = call(frames, batch=batch, channels_last=channels_last)
    got = BY_NAME["taps_tiled"].write(Eager(), c)
    torch.testing.assert_close(got, plain(c), rtol=1e-12, atol=1e-12)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_tile_is_computed_before_the_next_is_convolved(channels_last: bool) -> None:
    noted = _Counting()
    BY_NAME["taps_tiled"].write(noted, call((2, 4), channels_last=channels_last))
    assert noted.steps == (["convolution"] * 3 + ["computed"]) * 4 + ["cat"]


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_chunks_with_a_cache_equal_the_whole(frames: int) -> None:
    """A causal convolution over frames at once, and frame by frame with the last two frames
    cached.
    """
    whole = call((frames,), zeros=(2, 0))
    expected = plain(whole)
    x = whole.x[0]
    for name in ("direct", "taps", "unfold"):
        got = []
        for t in range(frames):
            pieces = [x[:, :, max(0, t - 2) : t], x[:, :, t : t + 1]]
            chunk = replace(
                whole, x=tuple(p for p in pieces if p.shape[2]), zeros=(max(0, 2 - t), 0)
            )
            got.append(BY_NAME[name].write(Eager(), chunk))
        torch.testing.assert_close(torch.cat(got, 2), expected, rtol=1e-12, atol=1e-12)


def test_an_image_through_a_video_kernel_is_one_conv2d() -> None:
    image = call((1,), zeros=(2, 0))
    assert image.live_taps() == 1
    assert BY_NAME["conv2d"].refuses(image, CPU) is None
    counted = _Counting()
    torch.testing.assert_close(
        BY_NAME["conv2d"].write(counted, image), plain(image), rtol=1e-12, atol=1e-12
    )
    assert counted.convolutions == [4]


def test_taps_leave_out_zero_frames() -> None:
    counted = _Counting()
    BY_NAME["taps"].write(counted, call((1,), zeros=(1, 1)))
    assert len(counted.convolutions) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["taps", "taps_tiled", "direct", "unfold", "tiled"])
def test_low_precision_is_as_exact_as_the_original(name: str, dtype: torch.dtype) -> None:
    from tests.accuracy import assert_no_worse

    c = call((TILE_FRAMES + 3,), channels=16, out=8, dtype=dtype)
    exact = plain(with_tensors(torch.Tensor.double, c))
    assert_no_worse(BY_NAME[name].write(Eager(), c), plain(c), exact)


def test_the_compute_dtype_is_used_and_the_result_keeps_its_own() -> None:
    c = call((4,), compute=torch.bfloat16, dtype=torch.float32)
    for name in ("direct", "taps", "taps_tiled", "unfold"):
        counted = _Counting()
        got = BY_NAME[name].write(counted, c)
        assert got.dtype is torch.float32
        assert set(counted.dtypes) == {torch.bfloat16}
        torch.testing.assert_close(got, plain(c), rtol=0.05, atol=0.05)  # bfloat16 keeps 8 bits


REFUSALS = [
    ("conv2d", call((3,)), "3 temporal taps see frames that are not zero"),
    ("conv2d", call((1,), zeros=(2, 1)), "2 temporal taps see frames that are not zero"),
    ("conv2d", call((1,), zeros=(2, 0), kernel=(1, 3, 3)), "some output frames see zeros alone"),
    ("taps", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap"),
    (
        "taps",
        call((1,), zeros=(0, 4), stride=(4, 1, 1), kernel=(1, 3, 3)),
        "kT=1: there is one tap",
    ),
    ("taps_tiled", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap"),
    ("taps_tiled", call((3,)), "1 output frame is one tile"),
    (
        "taps_tiled",
        call((1,), zeros=(4, 0)),
        "no temporal tap of some tile sees a frame that is not zero",
    ),
    ("unfold", call((3,), kernel=(1, 3, 3)), "kT=1: there is one tap, so nothing to unfold"),
    (
        "matmul",
        call((3,)),
        "the kernel is not as large as the stride: inputs are read more than once",
    ),
    ("matmul", call((3,), kernel=(1, 1, 1), groups=2, out=4, padding=(0, 0)), "groups=2"),
    ("matmul", call((3,), kernel=(1, 1, 1)), "it has padding"),
    (
        "matmul",
        call((3,), kernel=(1, 2, 2), stride=(1, 2, 2), padding=(0, 0), dilation=(1, 2, 1)),
        "dilation=(1, 2, 1)",
    ),
    ("tiled", call((TILE_FRAMES,)), "2 output frames are one tile"),
    ("tiled", call((3,)), "1 output frame is one tile"),
]


@pytest.mark.parametrize(
    ("name", "c", "reason"), REFUSALS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refusals_say_why(name: str, c: Conv3d, reason: str) -> None:
    assert BY_NAME[name].refuses(c, CPU) == reason


AMD = Target("amd", "gfx942", "MI300X", "2.11", "3.6")
NVIDIA = Target("nvidia", "sm_90", "H200", "2.11", "3.6")
AMPERE = Target("nvidia", "sm_80", "A100", "2.11", "3.6")
BF16 = torch.bfloat16


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


@pytest.mark.parametrize("name", ["taps", "taps_tiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_taps_rounded_to_16_bits_are_for_fast_numerics(name: str, dtype: torch.dtype) -> None:
    c, low = call((6,), dtype=dtype), BY_NAME[name]
    why = (
        f"each tap's sum is rounded to {str(dtype).removeprefix('torch.')} before the taps are "
        "added"
    )
    for numerics in ("default", "strict"):
        verdict = asked(low, c, AMD, Options(rewrite_numerics=numerics))
        assert (verdict.verdict, verdict.reason) == (
            "refused",
            f"rewrite_numerics='fast' is needed: {why}",
        )
    assert asked(low, c, AMD, Options(rewrite_numerics="fast")).verdict == "able"
    in_it = call((6,), dtype=torch.float32, compute=dtype)
    assert why in asked(low, in_it, AMD, Options()).reason


def test_taps_that_round_no_partial_sum_are_exact() -> None:
    assert asked(BY_NAME["taps"], call((3,), dtype=torch.float32), AMD, Options()).verdict == "able"
    one_live = call((1,), zeros=(2, 0), dtype=BF16)
    assert asked(BY_NAME["taps"], one_live, AMD, Options()).verdict == "able"


def still_scene(dtype: torch.dtype) -> Conv3d:
    """Frames alike, and a kernel that sees what changes between them: temporal taps cancel."""
    c = call((2, 6), channels=16, out=16, dtype=torch.float64, bias=False)
    still, draw = c.x[0][:, :, :1], torch.Generator().manual_seed(1)
    changes = torch.randn(1, 16, 8, 5, 6, generator=draw, dtype=torch.float64)
    x = (still * (1 + 0.002 * changes)).to(dtype)
    weight = c.weight.clone()
    weight[:, :, 2], weight[:, :, 1] = -weight[:, :, 0], weight[:, :, 1] * 0.02
    return replace(c, x=(x[:, :, :2], x[:, :, 2:]), weight=weight.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scene_that_hardly_moves(dtype: torch.dtype) -> None:
    """Lowerings that are taken by default are as exact as conv3d; those for fast numerics
    are not.
    """
    c = still_scene(dtype)
    exact = plain(with_tensors(torch.Tensor.double, c))

    def error(y: torch.Tensor) -> float:
        return float((y.double() - exact).norm() / exact.norm())

    found = {}
    for low in LOWERINGS:
        # The interpreter truncates to bf16 (tests/kernels/test_triton_conv.py measures the kernel
        # in that dtype).
        if low.refuses(c, AMD) is None and not (low.name == "triton" and dtype is BF16):
            found[low.name] = error(low.write(Eager(), c)) / error(plain(c))
    inexact = {name for name in found if BY_NAME[name].inexact(c, AMD) is not None}
    assert inexact == {"taps", "taps_tiled"}
    assert {name for name, worse in found.items() if worse > 1.5} == inexact


STEPS = (torch.ops.aten.convolution.default, torch.ops.aten.cat.default, COMPUTED.overload)


class _Counting(Eager):
    """Notes the rank and dtype of each convolution's input, and the order of what makes memory."""

    def __init__(self) -> None:
        self.convolutions: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.steps: list[str] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target in STEPS and not (target is torch.ops.aten.cat.default and not self.steps):
            self.steps.append(target._opname)
        if target is torch.ops.aten.convolution.default:
            self.convolutions.append(args[0].ndim)
            self.dtypes.append(args[0].dtype)
        return super().__call__(target, *args, **kwargs)


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
