"""Frames copied between layouts, bit for bit; and the norms' kernels that write into a part of a
video.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.kernels.triton.convolution.frames import FrameTile, choose_tile, copy_frames
from rocm_passes.ops import channel_norm as channel_op
from rocm_passes.ops import group_norm as group_op
from rocm_passes.ops.operator import Operator
from tests.kernels.kernel_calls import channel_norm, group_norm
from tests.kernels.test_triton_channel_norm import ORDERS, video
from tests.on_the_gpu import where_kernels_run
from tests.suites import examples

pytestmark = pytest.mark.pairwise

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}


def joined(x: Tensor, frames: int, layout: str) -> Tensor:
    """A video like x with so many more frames, poisoned."""
    n, c, t, h, w = x.shape
    made = torch.empty(
        (n, c, t + frames, h, w), dtype=x.dtype, device=x.device, memory_format=LAYOUTS[layout]
    )
    return made.fill_(float("nan"))


def check_copy(x: Tensor, frames: int, layout: str, tile: FrameTile | None = None) -> None:
    whole = joined(x, frames, layout)
    copy_frames(x, whole[:, :, : x.shape[2]], tile)
    assert torch.equal(whole[:, :, : x.shape[2]], x)
    assert whole[:, :, x.shape[2] :].isnan().all(), "it wrote outside its frames"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("channels", [1, 3, 16, 96])
def test_copy_frames(channels: int, dtype: torch.dtype, layout: str, order: str) -> None:
    check_copy(video((2, channels, 2, 3, 5), order, dtype), 3, layout)


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 20, 3, 4, 7)]),
    frames=st.integers(0, 3),
    order=st.sampled_from(sorted(ORDERS)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    tile=st.sampled_from([None, FrameTile(4, 8), FrameTile(16, 16)]),
)
@settings(max_examples=examples(40), deadline=None)
def test_any_shape(
    shape: tuple[int, ...], frames: int, order: str, layout: str, tile: FrameTile | None
) -> None:
    check_copy(video(shape, order), frames, layout, tile)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_apart_and_frames_repeated(layout: str) -> None:
    """Frames of [T, C, H, W] as one video, every second frame of one, and one frame for all of
    them.
    """
    x = video((1, 6, 4, 3, 5), "contiguous", BF16)
    of_frames = x[0].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)[None]
    for each in (of_frames, x[:, :, ::2], x[:, :, :1].expand(1, 6, 4, 3, 5)):
        check_copy(each, 1, layout)


def test_64_bit_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.kernels.triton.convolution.frames.INT32_MAX", 10)
    check_copy(video((2, 20, 2, 3, 5), "contiguous", BF16), 2, "channels-last")


def test_nothing_to_copy() -> None:
    copy_frames(torch.empty(1, 3, 0, 4, 4), torch.empty(1, 3, 0, 4, 4))


def test_what_it_refuses() -> None:
    x = torch.ones(1, 3, 2, 4, 4)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 2, 4, 4\), out \(1, 3, 3, 4, 4\)"):
        copy_frames(x, torch.ones(1, 3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"one \[N, C, T, H, W\] is needed"):
        copy_frames(x[0], x[0])
    with pytest.raises(TypeError, match=r"x is torch.float32 and out torch.float16"):
        copy_frames(x, x.half())
    with pytest.raises(ValueError, match="at equal distances"):
        copy_frames(x, torch.ones(1, 3, 2, 4, 6)[..., :4])


def test_tiles_are_turned_square_and_kept_long() -> None:
    assert choose_tile(128, 2, channels_innermost=True) == FrameTile(64, 128)
    assert choose_tile(96, 2, channels_innermost=True) == FrameTile(32, 256)
    assert choose_tile(128, 2, channels_innermost=False) == FrameTile(1, 4096)


NORMS: dict[str, Callable[..., Tensor]] = {
    "channel norm": lambda x, out=None: channel_norm(x, scale=2.0, silu=True, out=out),
    "group norm": lambda x, out=None: group_norm(x, 2, eps=1e-6, silu=True, out=out),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_norms_write_where_they_are_told(
    dtype: torch.dtype, layout: str, order: str, norm: str
) -> None:
    """What the kernel returns by itself; two samples, so that there is a gap between them."""
    x = video((2, 6, 3, 4, 5), order, dtype)
    whole = joined(x, 2, layout)
    out = whole[:, :, 2:]
    assert NORMS[norm](x, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, NORMS[norm](x), rtol=2e-6 if dtype is FP32 else 0, atol=1e-6)
    assert whole[:, :, :2].isnan().all(), "it wrote outside its frames"


@pytest.mark.parametrize("norm", NORMS)
def test_norms_refuse_other_places(norm: str) -> None:
    x = torch.ones(1, 6, 2, 4, 4)
    with pytest.raises(
        ValueError, match=r"out has shape \(1, 6, 3, 4, 4\) and x \(1, 6, 2, 4, 4\)"
    ):
        NORMS[norm](x, out=torch.ones(1, 6, 3, 4, 4))
    with pytest.raises(ValueError, match="at equal distances"):
        NORMS[norm](x, out=torch.ones(1, 6, 2, 4, 6)[..., :4])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("module", ["channel_norm_launch", "group_norm_launch"])
def test_64_bit_offsets_into_a_video(
    monkeypatch: pytest.MonkeyPatch, module: str, norm: str
) -> None:
    monkeypatch.setattr(f"rocm_passes.kernels.triton.norms.{module}.INT32_MAX", 10)
    test_norms_write_where_they_are_told(BF16, "channels-last", "channels-last", norm)


def arguments(operator: Operator, x: Tensor, **given: object) -> list[object]:
    every = {
        "x": x, "groups": 2, "form": "l2", "eps": 1e-6, "scale": 2.0, "silu": True,
        "rounds_between": False,
        "out_dtype": x.dtype, "repeat_first": 0,
    } | given  # fmt: skip
    return [every.get(name) for name in operator.parameters]


@pytest.mark.parametrize(
    "operator", [channel_op.CHANNEL_NORM, group_op.GROUP_NORM], ids=lambda o: o.name
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames", ["front", "repeat_first"])
def test_operators_put_frames_in_front(frames: str, order: str, operator: Operator) -> None:
    """Kernel, reference and fake agree with a cat, in values, shape and strides."""
    x = video((1, 6, 3, 4, 5), order)
    front = video((1, 6, 2, 4, 5), "contiguous", seed=1)
    given: dict[str, object] = {"front": front} if frames == "front" else {"repeat_first": 2}
    alone = where_kernels_run(operator.overload)(*arguments(operator, x), "triton")
    expected = torch.cat(
        [front if frames == "front" else alone[:, :, :1].expand(1, 6, 2, 4, 5), alone], 2
    )
    by_kernel = where_kernels_run(operator.overload)(*arguments(operator, x, **given), "triton")
    by_reference = operator.overload(*arguments(operator, x, **given), "reference")
    on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in given.items()}
    fake = operator.overload(*arguments(operator, x.to("meta"), **on_meta), "triton")
    torch.testing.assert_close(by_kernel, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(by_reference, expected, rtol=2e-6, atol=1e-6)
    assert by_kernel.stride() == by_reference.stride() == fake.stride()
    last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
    assert by_kernel.is_contiguous(memory_format=LAYOUTS["channels-last" if last else "contiguous"])
