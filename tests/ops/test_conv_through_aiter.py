"""Convolutions of graphs through aiter's double: what is joined, chosen and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.doubles import aiter_double
from tests.doubles.aiter_double import installed
from tests.rewriting import Rewritten, rewrite

BF16 = torch.bfloat16
MAIN = "0.1.23"
C, OUT = 8, 6


@pytest.fixture(autouse=True)
def operators_run_their_lowerings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: True)


def through_aiter(
    arch: str, fn: Callable[..., Any], *args: Tensor, version: str = MAIN, **options: Any
) -> Rewritten:
    """The rewritten graph's run; every call in the double's log kept the contract."""
    amd = Target("amd", arch, "AMD", torch.__version__, None)
    with pytest.MonkeyPatch.context() as patch, installed(version, arch):
        patch.setattr("rocm_passes.backend.Target.of_inputs", staticmethod(lambda _: amd))
        seen = rewrite(fn, *args, options={"select": "auto", "tune_seconds": 0, **options})
        assert [e for e in aiter_double.log() if e.harm is not None] == []
        made = [t for t in seen.targets() if t is AITER_CONV.overload]
        assert len(aiter_double.log()) == len(made)
    return seen


def draw(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cached(front: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(F.pad(torch.cat([front, x], 2), (1, 1, 1, 1, 0, 0)), w, b)


def first_chunk(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w, b)


def symmetric(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(x, w, b, padding=1)


def strided(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(x, w, b, stride=(2, 1, 1), padding=(0, 1, 1))


FRAMES, IMAGE = draw(1, C, 3, 5, 6), draw(1, C, 1, 5, 6)
FRONT = draw(1, C, 2, 5, 6, seed=1)
CUBE, BIAS = draw(OUT, C, 3, 3, 3, seed=2), draw(OUT, seed=3)
GRAPHS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "cached": (cached, (FRONT, FRAMES, CUBE, BIAS)),
    "first chunk": (first_chunk, (FRAMES, CUBE, BIAS)),
    "image": (first_chunk, (IMAGE, CUBE, BIAS)),
    "symmetric": (symmetric, (FRAMES, CUBE, BIAS)),
    "strided": (strided, (FRAMES, CUBE, BIAS)),
    "frames": (
        lambda x, w, b: F.conv3d(x, w, b, padding=(0, 1, 1)),
        (FRAMES, draw(OUT, C, 1, 3, 3, seed=2), BIAS),
    ),
    "two videos": (
        lambda x, w, b: F.conv3d(x, w, b, padding=(0, 1, 1)),
        (draw(2, C, 3, 5, 6), draw(OUT, C, 1, 3, 3, seed=2), BIAS),
    ),
    "time": (
        lambda f, x, w: F.conv3d(torch.cat([f, x], 2), w),
        (FRONT, FRAMES, draw(OUT, C, 3, 1, 1, seed=2)),
    ),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("kind", ["flydsl", "triton"])
def test_forced_and_exact(kind: str, name: str, layout: str) -> None:
    fn, args = GRAPHS[name]
    arch = "gfx950" if kind == "flydsl" else "gfx1201"
    options = {"lowering": {"conv3d": f"aiter_{kind}"}, "layout": layout}
    seen = through_aiter(arch, fn, *args, idioms="conv3d", **options)
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", f"aiter_{kind}"), site.reason
    assert seen.targets().count(AITER_CONV.overload) == 1
    assert torch.ops.aten.convolution.default not in seen.targets()
    assert_no_worse(seen.result, fn(*args), fn(*(a.double() for a in args)))


@pytest.mark.parametrize(("name", "joins"), [("cached", 1), ("first chunk", 1), ("symmetric", 0)])
def test_what_aiter_cannot_pad_is_joined_first(name: str, joins: int) -> None:
    fn, args = GRAPHS[name]
    options = {"lowering": {"conv3d": "aiter_flydsl"}}
    seen = through_aiter("gfx950", fn, *args, idioms="conv3d", **options)
    targets = seen.targets()
    copies = (torch.ops.aten.cat.default, torch.ops.aten.constant_pad_nd.default)
    assert sum(targets.count(copy) for copy in copies) == joins


def test_a_bucket_of_frames() -> None:
    fn, args = GRAPHS["cached"]
    options = {"lowering": {"conv3d": "aiter_flydsl"}, "conv_frames_bucket": 4}
    seen = through_aiter("gfx950", fn, *args, idioms="conv3d", **options)
    assert seen.only().parameters["extra_frames"] == 1
    assert_no_worse(seen.result, fn(*args), fn(*(a.double() for a in args)))


def test_float32_computed_in_bfloat16() -> None:
    fn, args = GRAPHS["cached"]
    wide = tuple(a.float() for a in args)
    options = {"lowering": {"conv3d": "aiter_flydsl"}, "conv_dtype": "bf16"}
    seen = through_aiter("gfx950", fn, *wide, idioms="conv3d", **options)
    assert seen.only().lowering == "aiter_flydsl" and seen.result.dtype == torch.float32
    torch.testing.assert_close(seen.result, fn(*wide), rtol=2e-2, atol=2e-1)


def test_a_float32_video_is_refused() -> None:
    fn, args = GRAPHS["cached"]
    options = {"lowering": {"conv3d": "aiter_flydsl"}}
    seen = through_aiter("gfx950", fn, *(a.float() for a in args), idioms="conv3d", **options)
    assert "x is float32" in seen.only().reason


def test_the_default_of_gfx950() -> None:
    """By published figures: channels-last, and FlyDSL for all that is no plain matrix product."""
    fn, args = GRAPHS["cached"]
    site = through_aiter("gfx950", fn, *args).sites[0]
    assert (site.idiom, site.lowering) == ("conv3d", "aiter_flydsl")
    assert site.parameters["channels_last"] and "aiter#5370" in site.reason


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100", "gfx1201"])
@pytest.mark.parametrize("name", ["cached", "image"])
def test_no_default_without_published_figures(arch: str, name: str) -> None:
    fn, args = GRAPHS[name]
    site = next(e for e in through_aiter(arch, fn, *args).sites if e.idiom == "conv3d")
    assert not (site.lowering or "").startswith("aiter")
    verdicts = {v.lowering: v.verdict for v in site.verdicts}
    assert verdicts["aiter_flydsl"] == "unavailable"
    assert verdicts["aiter_triton"] == "not_faster"


def test_no_default_of_gfx950_in_float32_or_an_older_aiter() -> None:
    fn, args = GRAPHS["cached"]
    wide = through_aiter("gfx950", fn, *(a.float() for a in args)).sites
    older = through_aiter("gfx950", fn, *args, version="0.1.22").sites
    for site in (*wide, *older):
        assert not (site.lowering or "").startswith("aiter")
        assert not site.parameters.get("channels_last")


def conv2d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w, b, padding=1)


PLANE = (draw(1, C, 5, 6), draw(OUT, C, 3, 3, seed=2), BIAS)


@pytest.mark.parametrize("layout", ["auto", "channels_last"])
@pytest.mark.parametrize(
    ("lowering", "arch"), [("aiter_flydsl", "gfx950"), ("aiter_triton", "gfx1100")]
)
def test_conv2d_forced_and_exact(lowering: str, arch: str, layout: str) -> None:
    seen = through_aiter(arch, conv2d, *PLANE, lowering={"conv2d": lowering}, layout=layout)
    assert (seen.only().idiom, seen.only().lowering) == ("conv2d", lowering), seen.only().reason
    assert_no_worse(seen.result, conv2d(*PLANE), conv2d(*(t.double() for t in PLANE)))


def test_winograd_needs_fast_numerics() -> None:
    options = {"lowering": {"conv2d": "aiter_winograd"}}
    site = through_aiter("gfx1201", conv2d, *PLANE, **options).only()
    assert site.outcome == "refused" and "rewrite_numerics='fast' is needed" in site.reason
    seen = through_aiter("gfx1201", conv2d, *PLANE, rewrite_numerics="fast", **options)
    assert seen.only().lowering == "aiter_winograd"
    assert any("Winograd" in note for note in seen.only().notes)


def test_a_conv2d_has_an_entry_on_amd_and_stays_as_it_is() -> None:
    seen = through_aiter("gfx1201", conv2d, *PLANE)
    assert (seen.only().idiom, seen.only().outcome) == ("conv2d", "kept")
    verdicts = {v.lowering: v.verdict for v in seen.only().verdicts}
    assert verdicts["channels_last"] == "refused" and verdicts["aiter_triton"] == "not_faster"


def test_conv2d_as_it_is() -> None:
    seen = through_aiter("gfx1201", conv2d, *PLANE, lowering={"conv2d": "direct"})
    assert seen.only().lowering == "direct" and torch.equal(seen.result, conv2d(*PLANE))
    options = {"lowering": {"conv2d": "direct"}, "layout": "channels_last"}
    seen = through_aiter("gfx1201", conv2d, *PLANE, **options)
    assert "are channels-last" in seen.only().reason


def test_elsewhere_a_conv2d_is_no_site_unless_its_graph_is_channels_last() -> None:
    assert rewrite(conv2d, *PLANE).sites == []


def test_groups_go_to_flydsl_and_not_to_triton() -> None:
    def grouped(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, padding=1, groups=2)

    args = (draw(1, C, 5, 6), draw(OUT, C // 2, 3, 3, seed=2))
    seen = through_aiter("gfx950", grouped, *args, lowering={"conv2d": "aiter_flydsl"})
    assert seen.only().lowering == "aiter_flydsl"
    seen = through_aiter("gfx950", grouped, *args, lowering={"conv2d": "aiter_triton"})
    assert "groups=2" in seen.only().reason


def test_dynamic_sizes_are_refused() -> None:
    fn, args = GRAPHS["cached"]
    options = {"lowering": {"conv3d": "aiter_triton"}, "idioms": "conv3d"}
    amd = Target("amd", "gfx1201", "AMD", torch.__version__, None)
    with pytest.MonkeyPatch.context() as patch, installed(MAIN, "gfx1201"):
        patch.setattr("rocm_passes.backend.Target.of_inputs", staticmethod(lambda _: amd))
        seen = rewrite(fn, *args, options=options, dynamic=True)
    assert "symbolic" in seen.only().reason
