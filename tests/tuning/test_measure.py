"""Measuring the lowerings of a call: what is run, what is counted, what a failure leaves."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, fake
from rocm_passes.ops.operator import Lowering
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning import meter as metering
from rocm_passes.tuning import rounds
from rocm_passes.tuning.meter import Meter
from tests.doubles import aiter_double
from tests.doubles.aiter_double import installed
from tests.ops.conv3d_calls import LOWERINGS, call, with_tensors

ABLE = [low for low in LOWERINGS if low.name in ("taps", "direct", "unfold")]
SMALL = call((2, 4), zeros=(1, 0), channels=8, out=8, size=(16, 16), dtype=torch.float32)


def failing(error: Exception) -> Lowering[Conv3d]:
    def write(b: Any, call: Conv3d) -> Any:
        raise error

    return replace(ABLE[0], name="failing", write=write)


def test_lowerings_are_measured_from_fake_tensors() -> None:
    """Inside a compile there are only fake tensors; and the user's random numbers stay as
    they are.
    """
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with FakeTensorMode() as mode:
        fake = with_tensors(mode.from_tensor, SMALL)
        found = measuring.measure(ABLE, fake)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(found.ms) == set(found.mib) == {"taps", "direct", "unfold"}
    assert min(found.ms.values()) > 0
    assert not found.skipped


def test_a_call_on_the_meta_device_is_measured_on_a_real_one() -> None:
    meta = with_tensors(lambda t: t.to("meta"), SMALL)
    assert set(measuring.measure(ABLE, meta).ms) == {"taps", "direct", "unfold"}


def test_what_is_fused_is_counted_in_bytes() -> None:
    """Taps: three convolutions are timed; their outputs are read once, the result is
    written once.
    """
    c = call((3,), zeros=(0, 0), channels=4, out=4, size=(8, 8), dtype=torch.bfloat16)
    taps = next(low for low in LOWERINGS if low.name == "taps")
    meter = Meter()
    assert taps.write is not None
    result = taps.write(meter, replace(c, bias=None))
    meter.finish(result)
    assert len(meter.work) == 3
    assert meter.moved == 4 * result.numel() * 2


def test_extra_memory_is_what_is_held_beside_the_result() -> None:
    """Of one megabyte a frame: three taps hold three outputs, of which the result re-uses one."""
    c = call((3,), zeros=(1, 1), channels=4, out=4, size=(512, 512), dtype=torch.float16)
    c = replace(c, bias=None, zeros=(0, 0), weight=c.weight[:, :, :3])
    one_frame = 2  # MiB: 4 * 512 * 512 * 2 bytes
    for name, expected in (("direct", 0), ("taps", 2 * one_frame)):
        meter = Meter()
        low = next(low for low in LOWERINGS if low.name == name)
        assert low.write is not None
        assert meter.finish(low.write(meter, c)) == expected


def test_tiles_hold_one_tile_s_taps_beside_the_result() -> None:
    """Four output frames of two megabytes: taps hold three times four less the result, tiles three
    times two.
    """
    c = call((6,), channels=4, out=4, size=(512, 512), dtype=torch.float16)
    mib, moved = {}, {}
    for name in ("taps", "taps_tiled"):
        meter = Meter()
        low = next(low for low in LOWERINGS if low.name == name)
        assert low.write is not None
        mib[name] = meter.finish(low.write(meter, replace(c, bias=None)))
        moved[name] = meter.moved
    assert mib == {"taps": 2 * 8, "taps_tiled": 3 * 2}
    # The outputs are read, the result is written; of tiles, half a residual addition's passes are
    # counted, too.
    assert moved == {"taps": (3 + 1) * 8 * 2**20, "taps_tiled": (3 + 1 + 1) * 8 * 2**20}


def test_a_tile_of_one_tap_alone_is_read_and_written() -> None:
    """In float32 without a bias there is nothing to add or round: the output is copied to its
    place.
    """
    c = call((2,), zeros=(0, 2), channels=4, out=4, size=(512, 512), dtype=torch.float32)
    meter = Meter()
    low = next(low for low in LOWERINGS if low.name == "taps_tiled")
    assert low.write is not None
    mib = meter.finish(low.write(meter, replace(c, bias=None)))
    assert len(meter.work) == 2 + 1
    assert mib == 2 * 4
    # Of four megabytes each: three outputs read, two frames written, and half an addition's passes
    # over them.
    assert meter.moved == (3 + 2 + 2) * 4 * 2**20


TRITON = next(low for low in LOWERINGS if low.name == "triton")


def test_the_kernel_reads_a_channels_last_graph_without_copies() -> None:
    c = call((2, 4), channels=16, out=16, size=(16, 16), dtype=torch.float16, channels_last=True)
    c = with_tensors(lambda t: t.to(memory_format=torch.channels_last_3d) if t.ndim == 5 else t, c)
    meter = Meter()
    assert TRITON.write is not None
    result = TRITON.write(meter, replace(c, bias=None))
    assert len(meter.work) == 1
    assert torch.equal(meter.work[0](), result)
    assert (meter.finish(result), meter.moved) == (0, 0)


def test_copies_into_channels_last_are_counted() -> None:
    """In a contiguous graph: both pieces and the weight are copied, and the result is
    copied back.
    """
    c = call((2, 4), channels=16, out=16, size=(128, 256), dtype=torch.float16)
    c, meter = replace(c, bias=None), Meter(counts_layouts=True)
    with mock.patch.object(metering, "_launches", _one_result):
        assert TRITON.write is not None
        result = TRITON.write(meter, c)
    read = [*c.x, c.weight, result]
    assert meter.moved == 2 * sum(t.numel() * 2 for t in read)
    # 2 + 4 frames of 1 MiB, and the channels-last result of 4 MiB; the weight has 14 KB.
    assert meter.finish(result) == 2 + 4 + 4


def _one_result(args: tuple[Any, ...], kwargs: Any) -> Any:
    made = fake(IMPLICIT_GEMM_CONV.bind(args, kwargs)[0])
    return lambda: made


def test_a_kernel_that_raises_is_left_out_and_not_timed_as_plain_torch() -> None:
    c = call((2, 4), channels=8, out=8, dtype=torch.float16)
    kernel = IMPLICIT_GEMM_CONV.lowering("triton")
    assert kernel is not None

    def run(call: Any) -> Any:
        raise RuntimeError("out of resource: shared memory")

    with mock.patch.object(IMPLICIT_GEMM_CONV, "lowerings", [replace(kernel, run=run)]):
        found = measuring.measure([TRITON, ABLE[1]], c)
    assert found.skipped == {"triton": "RuntimeError: out of resource: shared memory"}
    assert set(found.ms) == {ABLE[1].name}


def test_a_conv2d_is_measured() -> None:
    x, weight = torch.empty(1, 4, 9, 9), torch.empty(6, 4, 3, 3)
    c = Conv2d(x, weight, torch.empty(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    able = [low for low in CONV2D.lowerings if low.name in ("channels_last", "direct")]
    found = measuring.measure(able, c)
    assert set(found.ms) == {"channels_last", "direct"} and not found.skipped


def test_upsampled_pixels_are_counted_where_they_are_written() -> None:
    """Twice the bytes of the upsampled tensor: Inductor's gather takes as long (H200)."""
    x, weight = torch.empty(1, 4, 64, 64), torch.empty(6, 4, 3, 3)
    c = Conv2d(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    direct = CONV2D.lowering("direct")
    assert direct is not None and direct.write is not None
    moved = {}
    for upsample in ((1, 1), (2, 2)):
        meter = Meter()
        meter.finish(direct.write(meter, replace(c, x=torch.randn(x.shape), upsample=upsample)))
        moved[upsample] = meter.moved
    written = 4 * x.numel() * x.itemsize
    assert moved[1, 1] == 0
    assert 2 * written <= moved[2, 2] < 2.1 * written


def test_an_upsampled_conv2d_is_another_call() -> None:
    x, weight = torch.empty(1, 4, 9, 9), torch.empty(6, 4, 3, 3)
    c = Conv2d(x, weight, torch.empty(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    wide = replace(c, upsample=(2, 2))
    assert wide.key() == c.key().replace("w 6x4x3x3", "w 6x4x3x3 upsampled 2x2")
    assert wide.flops() == replace(c, x=torch.empty(1, 4, 18, 18)).flops() == 4 * c.flops()
    able = [low for low in CONV2D.lowerings if low.name in ("channels_last", "direct")]
    found = measuring.measure(able, wide)
    assert set(found.ms) == {"channels_last", "direct"} and not found.skipped


def test_aiter_s_convolution_is_run_and_what_it_raises_leaves_it_out() -> None:
    """Its fresh copy of the weight is in the time, and so is what the lowering joins first."""
    c = call((2, 4), zeros=(1, 0), channels=8, out=8, size=(5, 6), dtype=torch.bfloat16)
    able = [low for low in CONV3D.lowerings if low.name in ("aiter_flydsl", "direct")]
    with installed("0.1.23", "gfx950"):
        found = measuring.measure(able, c)
        assert set(found.ms) == {"aiter_flydsl", "direct"}
        assert all(entry.harm is None for entry in aiter_double.log())
    with installed("0.1.23", "gfx942"):
        found = measuring.measure(able, c)
    assert set(found.ms) == {"direct"} and "gfx942" in found.skipped["aiter_flydsl"]


def test_frames_joined_for_aiter_are_counted() -> None:
    c = call((2, 4), channels=8, out=8, size=(128, 256), dtype=torch.bfloat16)
    c, meter = replace(c, bias=None), Meter()
    flydsl = CONV3D.lowering("aiter_flydsl")
    assert flydsl is not None and flydsl.write is not None
    with installed("0.1.23", "gfx950"):
        flydsl.write(meter, c)
    # The two cached frames are copied in front of the others.
    assert meter.moved == 2 * c.x[0].numel() * 2


def test_a_lowering_that_raises_is_one_less() -> None:
    found = measuring.measure(
        [failing(RuntimeError("miopenStatusUnknownError\nmore")), ABLE[0]], SMALL
    )
    assert found.skipped == {"failing": "RuntimeError: miopenStatusUnknownError"}
    assert set(found.ms) == {ABLE[0].name}


def test_out_of_memory_leaves_out_that_lowering_alone() -> None:
    found = measuring.measure([ABLE[0], failing(torch.OutOfMemoryError()), ABLE[1]], SMALL)
    assert found.skipped == {"failing": "out of memory"}
    assert set(found.ms) == {ABLE[0].name, ABLE[1].name}


def test_what_fits_alone_only_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the lowerings held together is let go of before."""
    together: list[int] = []
    held: list[weakref.ref[Any]] = []

    def in_turn(candidates: dict[str, Any], burst: Any, **_: Any) -> dict[str, float]:
        together.append(len(candidates))
        if len(candidates) > 1:
            held.extend(weakref.ref(work) for calls in candidates.values() for work in calls)
            raise torch.OutOfMemoryError
        assert all(ref() is None for ref in held)
        return dict.fromkeys(candidates, 1.0)

    monkeypatch.setattr(rounds, "in_turn", in_turn)
    found = measuring.measure(ABLE, SMALL)
    assert together == [3, 1, 1, 1]
    assert len(held) == 1 + 3 + 1
    assert set(found.ms) == {"taps", "direct", "unfold"}


def test_the_watch_is_told_and_can_stop() -> None:
    told: list[str] = []

    def watch(name: str, seconds: float) -> bool:
        told.append(name)
        assert seconds > 0
        return len(told) < 2

    found = measuring.measure(ABLE, SMALL, watch)
    assert told == [low.name for low in ABLE[:2]]
    assert set(found.ms) == set(told)


def test_a_stop_holds_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(candidates: dict[str, Any], burst: Any, **_: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rounds, "in_turn", in_turn)
    told: list[str] = []

    def watch(name: str, seconds: float) -> bool:
        told.append(name)
        return False

    assert not measuring.measure(ABLE, SMALL, watch).ms
    assert told == [ABLE[0].name]


def test_a_noted_call_is_measured_on_a_numbered_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards of one machine: what is cached by device, the copy rate, must not be shared."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    noted = with_tensors(lambda t: t.to("meta"), call((1,)))
    assert measuring.device_of(noted) == torch.device("cuda", 1)
