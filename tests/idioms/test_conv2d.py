"""Conv2d behind nearest upsampling: one call where nothing else reads the upsampled tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.report.ledger import Entry
from rocm_passes.target import triton_is_interpreted
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, check, draw
from tests.ops.test_conv_through_aiter import through_aiter
from tests.rewriting import Rewritten, rewrite

aten = torch.ops.aten
C, OUT = 16, 6
LAST = {"layout": "channels_last"}
GATHERS = (aten._unsafe_index.Tensor, aten.index.Tensor)


def weights(dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    return draw(OUT, C, 3, 3, dtype=dtype, seed=1), draw(OUT, dtype=dtype, seed=2)


def twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), w, b, padding=1)


def wan(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Wan's: in float32, and back."""
    wide = F.interpolate(x.float(), scale_factor=(2.0, 2.0), mode="nearest-exact").type_as(x)
    return F.conv2d(wide, w, b, padding=1)


def taller(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return F.conv2d(F.interpolate(x, size=(3 * height, width)), w, b, stride=2)


def frames(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A video's, each a picture of the batch."""
    pictures = x.unflatten(0, (1, -1)).flatten(0, 1)
    return F.conv2d(F.interpolate(F.relu(pictures), scale_factor=2.0), w, b, padding=1)


def site(r: Rewritten) -> Entry:
    (entry,) = [e for e in r.sites if e.idiom == "conv2d"]
    return entry


def gathers(r: Rewritten) -> int:
    return sum(r.targets().count(target) for target in GATHERS)


UPSAMPLERS = [(twice, [2, 2]), (wan, [2, 2]), (taller, [3, 1]), (frames, [2, 2])]


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("fn", "factors"), UPSAMPLERS)
def test_the_library_gets_it_upsampled(
    fn: Callable[..., Tensor], factors: list[int], dtype: torch.dtype
) -> None:
    args = (draw(2, C, 3, 5, dtype=dtype), *weights(dtype))
    r = rewrite(fn, *args, options={"select": "auto", **LAST})
    last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in args]
    torch.testing.assert_close(r.result, fn(*last), rtol=0, atol=0)
    assert (site(r).lowering, site(r).parameters["upsampled"]) == ("channels_last", factors)
    assert gathers(r) == 1


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("fn", "factors"), UPSAMPLERS)
def test_the_kernel_reads_each_pixel_where_it_lies(
    fn: Callable[..., Tensor], factors: list[int], dtype: torch.dtype
) -> None:
    """In Triton's interpreter where there is no GPU."""
    args = (draw(2, C, 3, 5, dtype=dtype), *weights(dtype))
    r = rewrite(fn, *args, options={"select": "auto", "lowering": {"conv2d": "triton"}, **LAST})
    if not triton_is_interpreted():
        assert site(r).lowering is None
        return
    assert site(r).lowering == "triton"
    assert gathers(r) == 0 and aten.convolution.default not in r.targets()
    (node,) = r.after[0].find_nodes(op="call_function", target=IMPLICIT_GEMM_CONV.overload)
    call, _ = IMPLICIT_GEMM_CONV.bind(node.args, node.kwargs)
    assert list(call.upsample) == factors
    assert_no_worse(r.result, fn(*args), fn(*(t.double() for t in args)))


SOURCES = {
    "sliced": lambda dtype: draw(2, 2 * C, 7, 5, dtype=dtype)[:, ::2, 1:6],
    "permuted": lambda dtype: draw(2, 5, 3, C, dtype=dtype).permute(0, 3, 2, 1),
    "expanded": lambda dtype: draw(1, C, 3, 1, dtype=dtype).expand(2, C, 3, 5),
    "square": lambda dtype: draw(C, C, C, C, dtype=dtype),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("lowering", ["triton", "channels_last"])
def test_sources_that_lie_otherwise(source: str, lowering: str) -> None:
    args = (SOURCES[source](F16), *weights(F16))
    options = {"select": "auto", "lowering": {"conv2d": lowering}, **LAST}
    r = rewrite(twice, *args, options=options)
    able = lowering != "triton" or triton_is_interpreted()
    assert site(r).lowering == (lowering if able else None)
    assert_no_worse(r.result, twice(*args), twice(*(t.double() for t in args)))


def shared(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    wide = F.interpolate(x, scale_factor=2.0)
    return F.conv2d(wide, w, b, padding=1), wide


def convolved_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    wide = F.interpolate(x, scale_factor=2.0)
    return F.conv2d(wide, w, b, padding=1) + F.conv2d(wide, w + 1, b, padding=1)


def by_a_fraction(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, size=(5, 8)), w, b, padding=1)


def smaller(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0)[:, :, 1:], w, b, padding=1)


def bilinear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="bilinear"), w, b, padding=1)


def padded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), [1, 0, 1, 0]), w, b)


@pytest.mark.parametrize("fn", [shared, convolved_twice, by_a_fraction, smaller, bilinear, padded])
def test_what_else_reads_it_or_is_no_upsampling_stays(fn: Callable[..., Any]) -> None:
    # Channels-last, the library sums the 144 products in another order.
    r = check(fn, draw(2, C, 3, 5), *weights(), options={"select": "auto", **LAST}, units=8.0)
    for entry in r.sites:
        assert "upsampled" not in entry.parameters


def test_an_upsampled_weight_is_no_input() -> None:
    """The same tensor is the input and the weight."""

    def own(x: Tensor) -> Tensor:
        wide = F.interpolate(x, scale_factor=2.0)
        return F.conv2d(wide, wide)

    r = check(own, draw(3, 3, 2, 2), options={"select": "auto", **LAST})
    assert "upsampled" not in site(r).parameters


def test_as_it_is_on_amd_keeps_the_bits() -> None:
    args = (draw(2, C, 3, 5, dtype=BF16), *weights(BF16))
    seen = through_aiter("gfx1201", twice, *args, lowering={"conv2d": "direct"})
    assert (seen.only().lowering, seen.only().parameters["upsampled"]) == ("direct", [2, 2])
    assert torch.equal(seen.result, twice(*args))


@pytest.mark.parametrize("lowering", ["aiter_flydsl", "aiter_triton"])
def test_aiter_gets_it_upsampled(lowering: str) -> None:
    arch = "gfx950" if lowering == "aiter_flydsl" else "gfx1201"
    args = (draw(2, 32, 4, 4, dtype=BF16), draw(32, 32, 3, 3, dtype=BF16), draw(32, dtype=BF16))
    seen = through_aiter(arch, twice, *args, lowering={"conv2d": lowering}, **LAST)
    assert seen.only().lowering == lowering, seen.only().reason
    assert_no_worse(seen.result, twice(*args), twice(*(t.double() for t in args)))
