"""3-D convolutions in low precision: how each lowering rounds, and which numerics allow it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aten.conv3d_write import TILE_FRAMES
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.options import Options
from rocm_passes.rewrite.choose import asked
from tests.ops.conv3d_calls import (
    AMD,
    BF16,
    BY_NAME,
    LOWERINGS,
    Counting,
    call,
    plain,
    with_tensors,
)


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
        counted = Counting()
        got = BY_NAME[name].write(counted, c)
        assert got.dtype is torch.float32
        assert set(counted.dtypes) == {torch.bfloat16}
        torch.testing.assert_close(got, plain(c), rtol=0.05, atol=0.05)  # bfloat16 keeps 8 bits


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
