"""The operator of the Triton convolution, and the lowerings of conv3d and conv2d that write it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels import register_lowerings
from rocm_passes.kernels.triton.launch import written_down
from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.ops.implicit_gemm_conv import (
    IMPLICIT_GEMM_CONV,
    ImplicitGemmConv,
    fake,
    reference,
)
from rocm_passes.options import Options
from rocm_passes.policy import verdict
from rocm_passes.rewrite.choose import asked
from rocm_passes.target import AMD_ARCHITECTURES, Target
from tests.ops.conv3d_calls import call, calls, has_output, plain, with_tensors
from tests.suites import examples

register_lowerings()
FP16, BF16 = torch.float16, torch.bfloat16
OVERLOAD = IMPLICIT_GEMM_CONV.overload
MI300 = Target("amd", "gfx942", "MI300X", "2.11", "3.6")
CONV3D_LOWERING, CONV2D_LOWERING = CONV3D.lowering("triton"), CONV2D.lowering("triton")
assert CONV3D_LOWERING is not None and CONV2D_LOWERING is not None


class Noted(Eager):
    """Runs a lowering, and notes the calls that it writes."""

    def __init__(self) -> None:
        self.made: list[ImplicitGemmConv] = []
        self.targets: list[Any] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        self.targets.append(target)
        if target is OVERLOAD:
            self.made.append(IMPLICIT_GEMM_CONV.bind(args, kwargs)[0])
        return super().__call__(target, *args, **kwargs)


def close(y: torch.Tensor, exact: torch.Tensor) -> None:
    """One rounding to float16 of sums in float32."""
    torch.testing.assert_close(y.double(), exact, rtol=2.0**-10, atol=2.0**-10)


@settings(max_examples=examples(12), deadline=None)
@given(calls())
def test_conv3d_is_exact(c: Conv3d) -> None:
    """Any padding, pieces, strides, dilation and memory format, against conv3d in float64."""
    c = with_tensors(torch.Tensor.half, c)
    assume(CONV3D_LOWERING.refuses(c, MI300) is None)
    assert has_output(c)
    y = CONV3D_LOWERING.write(Eager(), c)
    close(y, plain(with_tensors(torch.Tensor.double, c)))
    layout = torch.channels_last_3d if c.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("frames", [(3,), (2, 1), (1, 1, 4), (3, 1, 1), (1, 4, 1)], ids=str)
def test_at_most_two_tensors_are_read(frames: tuple[int, ...], extra: int) -> None:
    """Two are read where they lie; of more, the fewest frames are joined."""
    c = replace(call(frames, dtype=FP16, channels_last=True, zeros=(1, 1)), extra_frames=extra)
    noted = Noted()
    y = CONV3D_LOWERING.write(noted, c)
    close(y, plain(with_tensors(torch.Tensor.double, c)))
    (made,) = noted.made
    copies = [t for t in noted.targets if t is torch.ops.aten.cat.default]
    assert len(copies) == (1 if len(frames) > 2 else 0)
    read = [made.x.shape[2]] if made.front is None else [made.front.shape[2], made.x.shape[2]]
    assert read == {(1, 1, 4): [2, 4], (3, 1, 1): [3, 2], (1, 4, 1): [1, 5]}.get(
        frames, list(frames)
    )
    assert torch.ops.aten.constant_pad_nd.default not in noted.targets


def test_a_float32_call_in_16_bits() -> None:
    """conv_dtype: what is read is converted, and the result is converted back."""
    c = call((2, 3), dtype=torch.float32, compute=FP16, channels_last=True)
    y = CONV3D_LOWERING.write(noted := Noted(), c)
    assert y.dtype is torch.float32 and noted.made[0].x.dtype is FP16
    torch.testing.assert_close(y, plain(c), rtol=2.0**-8, atol=2.0**-8)


def test_a_packed_weight_is_not_copied() -> None:
    made = operands(2)
    weight = made.weight.contiguous(memory_format=torch.channels_last_3d)
    lowering = IMPLICIT_GEMM_CONV.lowering("triton")
    assert lowering is not None and lowering.run is not None
    with written_down() as launches:
        lowering.run(replace(made, weight=weight))
    (launch,) = launches
    assert launch.arguments["w_ptr"].data_ptr() == weight.data_ptr()


REFUSED: list[tuple[Conv3d, str]] = [
    (call((3,), dtype=torch.float32), "it computes in torch.float32"),
    (call((3,), dtype=torch.float64), "it computes in torch.float64"),
    (call((3,), dtype=BF16, groups=2, out=4), "groups=2; 1 is needed"),
    (
        replace(call((3,), dtype=BF16), bias=torch.ones(5, dtype=torch.float64)),
        "bias is torch.float64",
    ),
    (
        replace(
            call((3,), dtype=BF16),
            x=(torch.empty(1, 4, 3, 65536, 65536, dtype=BF16, device="meta"),),
        ),
        "more than 32 bits count",
    ),
]


@pytest.mark.parametrize(("c", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refusals_reach_the_ledger(c: Conv3d, reason: str) -> None:
    verdict = asked(CONV3D_LOWERING, c, MI300, Options())
    assert verdict.verdict == "refused" and reason in verdict.reason


def test_symbolic_sizes_are_refused() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    c = with_tensors(mode.from_tensor, call((5,), dtype=BF16, size=(7, 9)))
    if all(isinstance(size, int) for t in c.tensors() for size in t.shape):
        pytest.skip("this torch makes no symbolic sizes here")
    assert CONV3D_LOWERING.refuses(c, MI300) == "its sizes are symbolic"


@pytest.mark.parametrize("arch", AMD_ARCHITECTURES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_candidate_on_amd_and_not_the_default(arch: str, channels_last: bool) -> None:
    target = Target("amd", arch, arch, "2.11", "3.6")
    c = call((2, 4), channels=96, out=96, dtype=BF16, channels_last=channels_last)
    assert asked(CONV3D_LOWERING, c, target, Options()).verdict == "able"
    said = verdict("conv3d", "triton", c, target)
    assert not said.pays
    assert "it is taken where a measurement of the call says so" in said.reason


def test_it_needs_triton() -> None:
    c = call((2, 4), dtype=BF16)
    bare = replace(MI300, triton_version=None)
    assert asked(CONV3D_LOWERING, c, bare, Options()).reason == "Triton is not installed"
    cpu = Target("cpu", "", "CPU", "2.11", "3.6")
    assert asked(CONV3D_LOWERING, c, cpu, Options()).verdict == "unavailable"


def image_call(**changes: Any) -> Conv2d:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 7, 5, generator=draw).to(FP16)
    weight = torch.randn(9, 6, 3, 2, generator=draw).to(FP16) / 6
    made = Conv2d(x, weight, torch.ones(9, dtype=FP16), [2, 1], [1, 0], [1, 2], False, [0, 0], 1)
    return replace(made, **changes)


@pytest.mark.parametrize("stride", [[2, 1], [2], [1, 1]])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("upsample", [(1, 1), (2, 2), (1, 3)])
def test_conv2d_is_exact(stride: list[int], with_bias: bool, upsample: tuple[int, int]) -> None:
    c = image_call(stride=stride, upsample=upsample)
    c = c if with_bias else replace(c, bias=None)
    y = CONV2D_LOWERING.write(Eager(), c)
    bias = None if c.bias is None else c.bias.double()
    seen = F.interpolate(c.x.double(), scale_factor=upsample)
    exact = F.conv2d(seen, c.weight.double(), bias, c.each("stride"), [1, 0], [1, 2])
    close(y, exact)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transposed": True}, "it is transposed"),
        ({"groups": 2}, "groups=2; 1 is needed"),
        ({"x": torch.empty(2, 6, 7, 5)}, "it computes in torch.float32"),
        ({"weight": torch.empty(9, 6, 3, 2)}, "weight is torch.float32 and x torch.float16"),
        ({"padding": [-1, 0]}, "it crops"),
    ],
)
def test_conv2d_refusals_reach_the_ledger(changes: dict[str, Any], reason: str) -> None:
    verdict = asked(CONV2D_LOWERING, image_call(**changes), MI300, Options())
    assert verdict.verdict == "refused" and reason in verdict.reason


def operands(
    front: int | None, dtype: torch.dtype = torch.float32, upsample: tuple[int, int] = (1, 1)
) -> ImplicitGemmConv:
    c = call((3,), dtype=dtype)
    before = None if front is None else torch.ones(1, 4, front, 5, 6, dtype=dtype)
    return ImplicitGemmConv(
        c.x[0], before, c.weight, c.bias, (1, 0), (1, 2, 1), (1, 0), (1, 1, 1), upsample
    )


@pytest.mark.parametrize("front", [None, 0, 2])
@pytest.mark.parametrize("upsample", [(1, 1), (2, 2), (3, 1)])
def test_reference_and_fake(front: int | None, upsample: tuple[int, int]) -> None:
    made = operands(front, upsample=upsample)
    y, promised = reference(made), fake(made)
    read = (made.x,) if made.front is None else (made.front, made.x)
    down, across = upsample
    pieces = tuple(t.repeat_interleave(down, 3).repeat_interleave(across, 4) for t in read)
    c = replace(
        call((3,), dtype=torch.float32), x=pieces, zeros=(1, 0), stride=(1, 2, 1), padding=(1, 0)
    )
    torch.testing.assert_close(y, plain(c))
    assert (y.shape, y.stride(), y.dtype) == (promised.shape, promised.stride(), promised.dtype)
    kernel = OVERLOAD(*made.arguments().values(), "triton")
    assert kernel.stride() == promised.stride()
    torch.testing.assert_close(kernel, y, rtol=1e-5, atol=1e-5)


def test_a_residual_is_added_by_reference_and_kernel() -> None:
    made = operands(2)
    plain_result = reference(made)
    residual = torch.randn(plain_result.shape)
    made = replace(made, residual=residual)
    torch.testing.assert_close(reference(made), plain_result + residual)
    kernel = OVERLOAD(*made.arguments().values(), "triton")
    torch.testing.assert_close(kernel, plain_result + residual, rtol=1e-5, atol=1e-5)


def test_opcheck() -> None:
    made = operands(2)
    torch.library.opcheck(OVERLOAD, (*made.arguments().values(), "triton"))
    added = replace(made, residual=torch.ones(made.shape()))
    torch.library.opcheck(OVERLOAD, (*added.arguments().values(), "triton"))
