"""float32 convolved in float16: every lowering, at magnitudes that float16 itself cannot hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aten.fp16_range import Ranges
from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.ops.conv3d import COMPUTE_ERRORS, Conv3d
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.target import Target
from tests.ops.conv3d_calls import BY_NAME, CPU, LOWERINGS, call, plain, with_tensors

CASES = {
    "cached": {"frames": (2, 4)},
    "tiles": {"frames": (2, 9), "channels_last": True},
    "zero frames": {"frames": (1,), "zeros": (2, 0)},
    "patches": {
        "frames": (4,),
        "kernel": (1, 2, 2),
        "stride": (1, 2, 2),
        "padding": (0, 0),
        "size": (6, 8),
    },
    "groups": {"frames": (3,), "channels": 32, "out": 32, "groups": 4},
}


def in_float16(case: str, x: float = 1.0, weight: float = 1.0, bias: float = 1.0) -> Conv3d:
    given: dict[str, Any] = {
        "channels": 32,
        "out": 24,
        "size": (10, 12),
        "dtype": torch.float32,
        **CASES[case],
    }
    c = call(**given, compute=torch.float16)
    assert c.bias is not None
    return replace(c, x=tuple(p * x for p in c.x), weight=c.weight * weight, bias=c.bias * bias)


def exact(c: Conv3d) -> torch.Tensor:
    return plain(with_tensors(torch.Tensor.double, c))


def error(got: torch.Tensor, c: Conv3d) -> float:
    """Root mean square, over that of the result without its bias."""
    reference, unbiased = exact(c), exact(replace(c, bias=None))
    return float(
        (got.double() - reference).square().mean().sqrt() / unbiased.square().mean().sqrt()
    )


@pytest.mark.each_value
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [(1, 1, 1), (1e6, 1, 1e6), (1e-7, 1, 1e-7), (1, 1e5, 1e5), (1e-6, 1e-6, 1e-12), (1e9, 1e-9,
    100), (1e-3, 1, 1e6)],
)  # fmt: skip
def test_every_lowering_keeps_float16_s_digits_at_any_magnitude(
    case: str, x: float, weight: float, bias: float
) -> None:
    c = in_float16(case, x, weight, bias)
    taken = [low for low in LOWERINGS if low.refuses(c, CPU) is None]
    assert len(taken) >= 2
    for low in taken:
        got = low.write(Eager(), c)
        assert got.dtype is torch.float32
        # float32's own digits of the bias come on top where that is a million times the rest.
        assert error(got, c) < 5e-4 + 1e-7 * bias / (x * weight), low.name


def test_the_convolutions_do_run_in_float16() -> None:
    for low in LOWERINGS:
        c = in_float16(
            "patches"
            if low.name == "matmul"
            else "zero frames"
            if low.name == "conv2d"
            else "tiles"
        )
        seen: list[torch.dtype] = []

        class Watch(Eager):
            def __call__(self, target: Any, *args: Any, seen: Any = seen, **kwargs: Any) -> Any:
                if target in (torch.ops.aten.convolution.default, torch.ops.aten.mm.default):
                    seen += [args[0].dtype, args[1].dtype]
                for operator in (IMPLICIT_GEMM_CONV, AITER_CONV):
                    if target is operator.overload:
                        seen += [t.dtype for t in operator.bind(args, kwargs)[0].tensors()]
                return super().__call__(target, *args, **kwargs)

        low.write(Watch(), c)
        assert set(seen) == {torch.float16}, low.name


@pytest.mark.parametrize("name", ["direct", "taps", "taps_tiled", "unfold", "tiled"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_was(name: str, value: float) -> None:
    c = in_float16("tiles", x=1e5)
    c.x[1][0, 3, 5, 2, 2] = value
    got, reference = BY_NAME[name].write(Eager(), c), plain(c)
    assert 0 < (~reference.isfinite()).sum() < reference.numel() / 4
    assert torch.equal(got.isfinite(), reference.isfinite())
    assert torch.equal(got.isnan(), reference.isnan())
    kept = reference.isfinite()
    # Eight times the error's own rms: of some ten thousand elements the largest have the largest
    # errors.
    noise = 8 * COMPUTE_ERRORS[torch.float16] * float(reference[kept].std())
    torch.testing.assert_close(got[kept], reference[kept], rtol=0, atol=noise)


@pytest.mark.parametrize("name", ["direct", "taps", "taps_tiled", "unfold", "tiled"])
def test_zeros_give_the_bias(name: str) -> None:
    c = in_float16("tiles", x=0.0)
    got = BY_NAME[name].write(Eager(), c)
    assert torch.equal(got, c.bias.view(1, -1, 1, 1, 1).expand_as(got))
    no_weight = in_float16("tiles", weight=0.0)
    got = BY_NAME[name].write(Eager(), no_weight)
    assert torch.equal(got, no_weight.bias.view(1, -1, 1, 1, 1).expand_as(got))


@pytest.mark.parametrize("x", [65504.0, 1.0, 2.0**-20, 1e30, 1e-30, 3e38, 1.2e-38])
@pytest.mark.parametrize("weight", [1.0, 3.9999, 1e4, 1e-8])
def test_no_sum_of_products_can_leave_the_range(x: float, weight: float) -> None:
    """The worst of all inputs: every product has the same sign and the largest size."""
    pieces = (torch.full((1, 8, 1, 2, 2), x), torch.zeros(1, 8, 0, 2, 2))
    w = torch.full((3, 8, 3, 3, 3), weight)
    ranges = Ranges(Eager(), pieces, w)
    scaled_x, scaled_w = ranges.input(pieces[0]), ranges.weight(w)
    worst = scaled_x.double().max() * scaled_w.double().flatten(1).sum(1).max()
    assert worst < 2**15 < torch.finfo(torch.float16).max
    assert scaled_x.max() >= 2**-3
    assert 2**12 <= scaled_w.double().flatten(1).sum(1).max() <= 2**13


@pytest.mark.parametrize(("compute", "share"), [(torch.float16, 0.9), (torch.bfloat16, 0.9)])
def test_the_error_that_the_ledger_says_is_the_one_that_is_made(
    compute: torch.dtype, share: float
) -> None:
    c = call((2, 4), channels=64, out=48, size=(16, 16), compute=compute, dtype=torch.float32)
    for name in ("direct", "taps", "unfold"):
        low = BY_NAME[name]
        made = error(low.write(Eager(), c), c)
        assert share * COMPUTE_ERRORS[compute] < made < COMPUTE_ERRORS[compute] / share, name
        assert low.note is not None
        said = low.note(c, Target.current())
        assert (
            said is not None
            and f"an error of about {COMPUTE_ERRORS[compute]:.2%} of the result's rms" in said
        )
        assert ("scaled into its range" in said) is (compute is torch.float16)
