"""conv3d to few channels, with its spatial taps as channels of the Triton convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.triton.convolution.narrow.conv3d import NARROW
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.options import Options
from rocm_passes.policy import verdict
from rocm_passes.rewrite.choose import asked
from rocm_passes.target import AMD_ARCHITECTURES, Target
from rocm_passes.tuning.meter import Meter
from tests.ops.conv3d_calls import call, calls, has_output, plain, with_tensors
from tests.ops.test_implicit_gemm_conv import MI300, Noted, close
from tests.rewriting import rewrite
from tests.suites import examples

FP16, BF16 = torch.float16, torch.bfloat16
LAST = torch.channels_last_3d


def narrow(frames: tuple[int, ...] = (3,), **changes: Any) -> Conv3d:
    """To 2 channels from 40: 9 sums of 4 bytes for each, beside 2 bytes for each of the input."""
    changes = {"channels": 40, "out": 2, "dtype": FP16, "channels_last": True} | changes
    return call(frames, **changes)


def compare(c: Conv3d) -> Noted:
    assert NARROW.refuses(c, MI300) is None
    noted = Noted()
    y = NARROW.write(noted, c)
    close(y, plain(with_tensors(torch.Tensor.double, c)))
    assert y.dtype is c.x[0].dtype
    layout = LAST if c.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=layout)
    return noted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"channels_last": False},
        {"batch": 2},
        {"padding": (0, 0)},
        {"padding": (2, 0)},
        {"padding": (3, 4)},
        {"kernel": (1, 3, 3)},
        {"kernel": (3, 1, 3)},
        {"kernel": (2, 5, 2)},
        {"dilation": (2, 2, 1), "frames": (5,)},
        {"stride": (2, 1, 1), "frames": (5,)},
        {"zeros": (2, 0)},
        {"zeros": (1, 1), "frames": (2, 1)},
        {"frames": (2, 4)},
        {"frames": (1, 1, 2)},
        {"size": (1, 1)},
        {"size": (1, 7), "out": 1},
    ],
    ids=str,
)
def test_against_float64(changes: dict[str, Any]) -> None:
    changes = dict(changes)
    noted = compare(narrow(changes.pop("frames", (3,)), **changes))
    (made,) = noted.made
    assert made.out_dtype is torch.float32 and made.bias is None


def test_frames_in_excess_are_left_out() -> None:
    compare(replace(narrow((2, 3)), extra_frames=3))


@settings(max_examples=examples(8), deadline=None)
@given(calls())
def test_any_call_that_is_taken(c: Conv3d) -> None:
    """Any padding, pieces, dilation and memory format; more sums than pay are as right."""
    c = replace(with_tensors(torch.Tensor.half, c), stride=(c.stride[0], 1, 1))
    reason = NARROW.refuses(c, MI300)
    assume(reason is None or reason.startswith(("its sums would take", "it has one spatial tap")))
    assert has_output(c)
    close(NARROW.write(Eager(), c), plain(with_tensors(torch.Tensor.double, c)))


def test_taps_that_cancel_are_rounded_once() -> None:
    """A scene that hardly moves, under a kernel that sees what changes: `conv3d` itself has this
    error in 16 bits, and a sum of rounded taps has some tens of times as much.
    """
    torch.manual_seed(0)
    w = torch.randn(2, 40, 3, 3, 3) / 360**0.5
    w[:, :, 2], w[:, :, 1] = -w[:, :, 0], 0.02 * w[:, :, 1]
    w[:, :, :, :, 2] = -w[:, :, :, :, 0] * 1.01
    still = torch.randn(1, 40, 1, 6, 6).expand(1, 40, 4, 6, 6)
    x = (still * (1 + 0.002 * torch.randn(still.shape))).to(FP16)
    c = replace(narrow((4,), size=(6, 6), bias=False), x=(x,), weight=w.to(FP16))
    exact = plain(with_tensors(torch.Tensor.double, c))
    error = (NARROW.write(Eager(), c).double() - exact).norm() / exact.norm()
    eager = (plain(c).double() - exact).norm() / exact.norm()
    assert error < 1.5 * eager


REFUSED = [
    ({"dtype": torch.float32}, "torch.float32"),
    ({"groups": 2, "channels": 80}, "groups=2"),
    ({"kernel": (3, 1, 1), "padding": (0, 0)}, "one spatial tap"),
    ({"stride": (1, 2, 1)}, "spatial stride (2, 1)"),
    ({"channels": 16}, "its sums would take 72 bytes a pixel, and its input takes 32"),
    ({"kernel": (1, 2, 2), "dilation": (1, 2, 2), "size": (1, 1)}, "no spatial tap sees"),
]


@pytest.mark.parametrize("changes, reason", REFUSED)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    found = asked(NARROW, narrow(**changes), MI300, Options())
    assert found.verdict == "refused" and reason in found.reason


@pytest.mark.parametrize("arch", ["sm_90", *AMD_ARCHITECTURES])
def test_never_by_rule(arch: str) -> None:
    target = Target.named(arch, "3.6")
    assert target is not None
    c = narrow((2, 4), channels=96, out=3, dtype=BF16)
    assert asked(NARROW, c, target, Options()).verdict == "able"
    assert not verdict("conv3d", "triton_narrow", c, target).pays


def test_a_measurement_counts_the_sums() -> None:
    """Written, read once by the code that adds them, and the result written. Where it is timed,
    a result in the wrong place would be found out.
    """
    c = replace(narrow((4,), size=(16, 16)), bias=None)
    meter = Meter()
    y = NARROW.write(meter, c)
    assert len(meter.work) == 1
    meter.finish(y)
    sums = 9 * y.numel() * 4
    # Those of the outermost rows and columns are not all read: no pixel is beyond them.
    assert 0.85 * sums < meter.moved - 2 * y.numel() <= sums + 2 * c.weight.numel() * 2


def test_through_the_backend() -> None:
    torch.manual_seed(0)

    def fn(front: torch.Tensor, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv3d(F.pad(torch.cat([front, x], 2), (1, 1, 1, 1, 0, 0)), w, b)

    args = [torch.randn(s).half() for s in ((1, 40, 2, 5, 6), (1, 40, 3, 5, 6))]
    args += [torch.randn(2, 40, 3, 3, 3).half() / 19, torch.randn(2).half()]
    options = {"lowering": {"conv3d": "triton_narrow"}, "layout": "channels_last"}
    seen = rewrite(fn, *args, options=options)
    entry = seen.only()
    assert (entry.outcome, entry.lowering) == ("rewritten", "triton_narrow"), entry.reason
    assert torch.ops.aten.convolution.default not in seen.targets()
    close(seen.result, fn(*(t.double() for t in args)))
