"""aiter's convolutions: each refusal, and the numbers, against doubles of its versions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels.aiter import aiter_conv as adapter
from rocm_passes.kernels.aiter import contract, conv_entries, installation
from rocm_passes.kernels.aiter.conv_contract import ConvEntry, refusal
from rocm_passes.ops.aiter_conv import AITER_CONV, AiterConv, fake
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.doubles import aiter_double
from tests.doubles.aiter_double import installed

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
MAIN = "0.1.23"


def call(
    channels: int = 8,
    out: int = 6,
    kernel: tuple[int, ...] = (3, 3, 3),
    size: tuple[int, ...] = (4, 5, 6),
    dtype: torch.dtype = BF16,
    **changes: Any,
) -> AiterConv:
    draw = torch.Generator().manual_seed(0)
    rank, groups = len(kernel), changes.get("groups", 1)
    shapes = ((1, channels, *size), (out, channels // groups, *kernel), (out,))
    x, weight, bias = (torch.randn(s, generator=draw).to(dtype) for s in shapes)
    made = AiterConv(x, weight, bias, [1] * rank, [k // 2 for k in kernel], [1] * rank, 1)
    return replace(made, **changes)


def image(**changes: Any) -> AiterConv:
    return call(**{"kernel": (3, 3), "size": (5, 6), **changes})


def exact(c: AiterConv) -> Tensor:
    convolve = F.conv2d if c.x.dim() == 4 else F.conv3d
    bias = None if c.bias is None else c.bias.double()
    return convolve(
        c.x.double(), c.weight.double(), bias, c.stride, c.padding, c.dilation, c.groups
    )


def rounded(c: AiterConv) -> Tensor:
    return exact(c).to(c.x.dtype)


def arch_of(entry: ConvEntry) -> str:
    return "gfx950" if entry == "flydsl" else "gfx942"


CALLS: list[tuple[ConvEntry, AiterConv]] = [
    *[("flydsl", c) for c in (call(), image(), call(kernel=(3, 1, 1)), call(kernel=(1, 3, 3)))],
    ("flydsl", call(stride=[2, 2, 1], dilation=[1, 2, 1], padding=[1, 0, 2])),
    ("flydsl", call(channels=3, bias=None)),
    ("flydsl", call(groups=2)),
    *[("triton", c) for c in (call(), image(), call(dtype=F16), image(dtype=F16))],
    *[("triton", call(kernel=k)) for k in ((1, 1, 1), (3, 1, 1), (5, 5, 5))],
    *[("triton", image(kernel=k)) for k in ((1, 1), (5, 5), (1, 3))],
    ("triton", image(stride=[2, 1], padding=[0, 3], dilation=[1, 2], bias=None)),
    ("triton", image(kernel=(1, 1), stride=[2, 2], padding=[0, 0])),
    ("winograd", image()),
]


@pytest.mark.parametrize("version", ["0.1.18", "0.1.20", "0.1.22", MAIN])
@pytest.mark.parametrize(("entry", "c"), CALLS)
def test_as_exact_as_torch(entry: ConvEntry, c: AiterConv, version: str) -> None:
    with installed(version, arch_of(entry)):
        reason = refusal(c, entry)
        if version != MAIN and (entry == "flydsl" or c.x.dim() == 5):
            assert reason is not None and f"aiter {version} has no" in reason
            return
        assert reason is None
        y = adapter.aiter_conv(c, entry)
        assert (y.shape, y.dtype, y.stride()) == (fake(c).shape, c.x.dtype, fake(c).stride())
        assert_no_worse(y, rounded(c), exact(c))


LAYOUTS = [
    lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
]


@pytest.mark.parametrize("entry", ["flydsl", "triton"])
@pytest.mark.parametrize("laid_out", LAYOUTS)
def test_any_strides(entry: ConvEntry, laid_out: Any) -> None:
    c = call()
    moved = replace(
        c, x=laid_out(c.x), weight=laid_out(c.weight), bias=torch.stack([c.bias] * 2, 1)[:, 0]
    )
    assert moved.bias is not None and not moved.bias.is_contiguous()
    with installed(MAIN, arch_of(entry)):
        assert_no_worse(adapter.aiter_conv(moved, entry), rounded(c), exact(c))


def changed(weight: Tensor) -> Iterator[None]:
    """The ways to change a weight, those that its version counter does not see among them."""
    weight.mul_(2)
    yield
    weight.data.mul_(0.5)
    yield
    weight.data += 1
    yield


@pytest.mark.parametrize("version", ["0.1.20", MAIN])
@pytest.mark.parametrize("entry", ["flydsl", "triton"])
def test_a_changed_weight_is_never_stale_and_nothing_stays(entry: ConvEntry, version: str) -> None:
    c = image()
    if entry == "flydsl" and version != MAIN:
        return
    with installed(version, arch_of(entry)):
        adapter.aiter_conv(c, entry)
        for _ in changed(c.weight):
            assert_no_worse(adapter.aiter_conv(c, entry), rounded(c), exact(c))
        assert not [key for cache in conv_entries.packs() for key in cache]
        if entry == "flydsl":
            assert not __import__(conv_entries.FLYDSL, fromlist=["_"])._WEIGHT_CACHE


def test_packs_of_others_are_left_alone() -> None:
    with installed(MAIN):
        other = object()
        conv_entries.packs()[0]["theirs"] = (other, other)
        adapter.aiter_conv(image(kernel=(5, 5)), "triton")
        assert [list(cache) for cache in conv_entries.packs() if cache] == [["theirs"]]


@pytest.mark.parametrize("entry", ["flydsl", "triton"])
def test_inference_tensors(entry: ConvEntry) -> None:
    """Their version counter raises, which the real caches read."""
    with torch.inference_mode():
        c = call()
    with installed(MAIN, arch_of(entry)), torch.inference_mode():
        y = adapter.aiter_conv(c, entry)
    assert_no_worse(y.clone(), rounded(c), exact(c))


@pytest.mark.parametrize("entry", ["flydsl", "triton"])
def test_a_weight_that_requires_a_gradient(entry: ConvEntry) -> None:
    c = call()
    c.weight.requires_grad_()
    with installed(MAIN, arch_of(entry)):
        assert not adapter.aiter_conv(c, entry).requires_grad


@pytest.mark.parametrize("entry", ["flydsl", "triton"])
def test_an_empty_batch_is_not_launched(entry: ConvEntry) -> None:
    c = replace(call(), x=torch.empty(0, 8, 4, 5, 6, dtype=BF16))
    with installed(MAIN, arch_of(entry)):
        assert adapter.aiter_conv(c, entry).shape == (0, 6, 4, 5, 6)
        assert not aiter_double.log()


@contextlib.contextmanager
def capture() -> Iterator[None]:
    assert aiter_double.machine is not None
    with mock.patch.object(adapter, "capturing", lambda x: True):
        aiter_double.machine.capturing.append(True)
        yield
        aiter_double.machine.capturing.clear()


@pytest.mark.parametrize("entry", ["flydsl", "triton"])
def test_the_first_call_is_not_within_a_graph_capture(
    entry: ConvEntry, caplog: pytest.LogCaptureFixture
) -> None:
    c = call(size=(3, 7, 9))
    with installed(MAIN, arch_of(entry)), mock.patch.object(adapter, "_RAN", set()):
        with capture(), caplog.at_level(logging.WARNING):
            y = adapter.aiter_conv(c, entry)
        assert not aiter_double.log() and "graph capture" in caplog.text
        torch.testing.assert_close(y.double(), exact(c), rtol=1e-2, atol=1e-1)
        adapter.aiter_conv(c, entry)
        with capture():
            adapter.aiter_conv(c, entry)
        assert len(aiter_double.log()) == 2


def test_the_call_is_made_on_the_tensor_s_device() -> None:
    with installed(MAIN), mock.patch.object(contract, "device_guard") as guard:
        adapter.aiter_conv(call(), "triton")
    guard.return_value.__enter__.assert_called_once()


def test_nothing_runs_under_a_fake_tensor_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with installed(MAIN), FakeTensorMode(), pytest.raises(contract.AiterContractError):
        adapter.aiter_conv(call(), "triton")


def test_another_shape_than_promised_is_an_error() -> None:
    wrong = torch.zeros(1, 2, 3, 4, 5, dtype=BF16)
    with (
        installed(MAIN),
        mock.patch.object(conv_entries, "convolve", lambda *_: wrong),
        pytest.raises(contract.AiterContractError, match="returned bfloat16 of shape"),
    ):
        adapter.aiter_conv(call(), "triton")


def test_other_strides_than_promised_are_copied() -> None:
    c = call()
    given = rounded(c).contiguous()
    with installed(MAIN), mock.patch.object(conv_entries, "convolve", lambda *_: given):
        y = adapter.aiter_conv(c, "triton")
    assert y.stride() == fake(c).stride() and torch.equal(y, given)


def huge(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty((), dtype=dtype).expand(shape)


REFUSED: list[tuple[ConvEntry, AiterConv, str]] = [
    ("flydsl", call(dtype=F16), "x is float16: aiter takes bfloat16 here"),
    ("flydsl", call(kernel=(1, 1, 1)), "the kernel has one element"),
    ("flydsl", replace(call(), groups=3), "do not divide into 3 groups"),
    ("triton", call(dtype=F32), "x is float32: aiter takes bfloat16, float16 here"),
    ("triton", replace(call(), weight=call().weight.half()), "weight is float16 and x is bfloat16"),
    ("triton", replace(call(), bias=call().weight[:, 0, 0, 0, 0].double()), "bias is float64"),
    ("triton", replace(call(), bias=torch.zeros(5, dtype=BF16)), "the bias has shape [5]"),
    ("triton", call(groups=2), "groups=2: aiter's Triton convolution takes 1"),
    ("triton", replace(call(), weight=call(channels=7).weight), "their channels differ"),
    ("triton", replace(call(), weight=image().weight), "x has 5 dimensions and the weight 4"),
    ("triton", replace(call(), stride=[1, 1]), "stride=(1, 1): aiter takes 3 numbers"),
    ("triton", replace(call(), stride=[0, 1, 1]), "stride=(0, 1, 1): aiter does not check it"),
    ("triton", replace(call(), dilation=[1, 0, 1]), "dilation=(1, 0, 1)"),
    ("triton", replace(call(), padding=[-1, 0, 0]), "padding=(-1, 0, 0)"),
    ("triton", replace(call(), dilation=[9, 1, 1]), "aiter divides by sizes of 0"),
    ("triton", replace(call(), x=huge(1, 8, 4, 0, 6)), "aiter divides by sizes of 0"),
    ("triton", replace(call(), x=huge(1, 8, 128, 1024, 1024)), "x takes 2.00 GiB"),
    ("triton", replace(call(out=99), x=huge(1, 8, 12, 1024, 1024)), "the result takes 2.32 GiB"),
    ("flydsl", replace(call(3), x=huge(1, 3, 128, 1024, 1024)), "x takes 2.00 GiB"),
    (
        "triton",
        replace(call(), x=huge(1, 20000, 3, 3, 3), weight=huge(2000, 20000, 3, 3, 3), bias=None),
        "the packed weight takes",
    ),
    (
        "flydsl",
        AiterConv(huge(1, 70000, 3, 3), huge(70000, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 70000),
        "blocks of output channels",
    ),
    ("winograd", call(), "has no such kernel"),
    ("winograd", image(dtype=F16), "x is float16: Winograd's transform"),
    ("winograd", image(kernel=(5, 5)), "takes 3x3 kernels of stride 1"),
    ("winograd", image(stride=[2, 2]), "takes 3x3 kernels of stride 1"),
    ("winograd", image(channels=3), "3 channels"),
    ("winograd", replace(image(), x=huge(1, 8, 3000, 3000)), "Winograd's input takes"),
    (
        "winograd",
        replace(image(channels=512, out=512), x=huge(1, 512, 720, 720)),
        "Winograd's products takes",
    ),
    ("triton", replace(call(), x=call().x.to_sparse()), "sparse"),
    ("triton", replace(call(), x=call().x.to("meta")), "x is on meta"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "c", "reason"), REFUSED, ids=[r for *_, r in REFUSED])
def test_refused(entry: ConvEntry, c: AiterConv, reason: str) -> None:
    with installed(MAIN, arch_of(entry)):
        found = refusal(c, entry)
        assert found is not None and reason in found, found
        with pytest.raises(contract.AiterContractError):
            adapter.aiter_conv(c, entry)
        assert not aiter_double.log()


def test_symbolic_sizes_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    c = call()
    with installed(MAIN), FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False) as mode:
        reason = refusal(replace(c, x=mode.from_tensor(c.x)), "triton")
    assert reason is not None and "symbolic" in reason


def test_a_second_gpu_of_another_kind_is_refused() -> None:
    with (
        installed(MAIN, "gfx942"),
        mock.patch.object(contract, "first_architecture", lambda: "gfx950"),
    ):
        reason = refusal(call(), "triton")
    assert reason is not None and "the first GPU is gfx950" in reason


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100", "gfx1201"])
def test_flydsl_runs_on_gfx950_only(arch: str) -> None:
    with installed(MAIN, arch):
        reason = refusal(call(), "flydsl")
        assert reason is not None and f"the GPU is {arch}" in reason
        assert arch in (adapter.needs_conv("flydsl")(target(arch)) or "")


def target(arch: str) -> Target:
    return Target("amd", arch, "AMD", torch.__version__, "3.6")


@pytest.mark.parametrize(
    ("version", "arch", "reason"),
    [
        ("0.1.17", "gfx942", "has no triton_conv2d"),
        ("0.1.18", "gfx942", None),
        ("0.1.18", "gfx1100", "no tables of convolutions for gfx1100"),
        ("0.1.20", "gfx1100", None),
        ("0.1.22", "gfx1201", None),
        (MAIN, "gfx950", None),
        (MAIN, "gfx90a", "does not list gfx90a"),
    ],
)
def test_where_triton_s_convolutions_are_available(
    version: str, arch: str, reason: str | None
) -> None:
    with installed(version, arch):
        found = adapter.needs_conv("triton")(target(arch))
        assert found is None if reason is None else reason in (found or ""), found


def test_where_flydsl_is_available() -> None:
    with installed("0.1.22", "gfx950"):
        assert "has no flydsl_conv" in (adapter.needs_conv("flydsl")(target("gfx950")) or "")
    with installed(MAIN, "gfx950"):
        assert adapter.needs_conv("flydsl")(target("gfx950")) is None
    nvidia = Target("nvidia", "sm_90", "H200", "2.13", "3.6")
    assert "AMD GPUs" in (adapter.needs_conv("flydsl")(nvidia) or "")


@pytest.mark.parametrize(
    ("entry", "file", "text", "reason"),
    [
        ("flydsl", "ops/flydsl/__init__.py", "import flydsl", "No module named 'flydsl'"),
        ("triton", "ops/triton/conv/conv2d.py", "import intj\n", "No module named 'intj'"),
        ("triton", "ops/triton/conv/_prepack.py", "PACKS = {}", "where they cannot be dropped"),
    ],
)
def test_what_does_not_import_or_cannot_be_emptied_is_unavailable(
    entry: ConvEntry, file: str, text: str, reason: str
) -> None:
    arch = arch_of(entry)
    with installed(MAIN, arch, own_files=True):
        (folder,) = __import__("aiter").__path__
        source = Path(folder, file)
        source.write_text(text + (source.read_text() if "conv2d" in file else ""))
        installation.reset()
        found = adapter.needs_conv(entry)(target(arch))
    assert found is not None and reason in found


def test_conv3d_that_does_not_import_is_refused() -> None:
    with installed(MAIN, own_files=True):
        (folder,) = __import__("aiter").__path__
        file = Path(folder, "ops/triton/conv/conv3d.py")
        file.write_text("import intj\n" + file.read_text())
        reason = refusal(call(), "triton")
        assert reason is not None and "intj" in reason and refusal(image(), "triton") is None


def test_winograd_is_inexact_and_the_others_are_not() -> None:
    by_name = {low.name: low for low in AITER_CONV.lowerings}
    reasons = {name: by_name[name].inexact(image(), target("gfx942")) for name in by_name}
    assert "amplified" in (reasons.pop("winograd") or "")
    assert set(reasons.values()) == {None}


def test_the_double_raises_where_the_real_one_does_harm() -> None:
    """Lists, strides, and a pack that stays: the adapter never makes such calls."""
    c = image()
    last = c.x.contiguous(memory_format=torch.channels_last)
    steps = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    with installed("0.1.20"):
        from aiter.ops.triton.conv import conv2d as module

        module.conv2d_nhwc_3x3(last, c.weight, c.bias, **steps)
        for x, harmful in ((c.x, steps), (last, {**steps, "stride": [1, 1]})):
            with pytest.raises(aiter_double.ContractViolation):
                module.conv2d_nhwc_3x3(x, c.weight, c.bias, **harmful)
        c.weight.mul_(2)
        with pytest.raises(aiter_double.ContractViolation, match="before"):
            module.conv2d_nhwc_3x3(last, c.weight, c.bias, **steps)
        assert [entry.harm is None for entry in aiter_double.log()] == [True, False, False, False]
