"""When a kernel is taken by itself: by size, spelling and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rocm_passes.ops import qk_norm_rotary, rotary, rotary_pair
from rocm_passes.ops.legacy import Arguments
from rocm_passes.ops.operator import Lowering, Verdict
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

NVIDIA = Target("nvidia", "sm_90", "H200", torch.__version__, "3.6")
AMD = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6")
CPU = Target("cpu", "", "CPU", torch.__version__, None)
LARGE, MIDDLE, SMALL = (1, 32760, 40, 128), (1, 4608, 24, 128), (1, 64, 24, 128)


def on_meta(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def recipe(complex_table: bool = False, scattered: bool = False) -> Recipe:
    return Recipe(
        view=None,
        axes="bsh",
        heads=1,
        interleaved=True,
        width=128,
        entries=(),
        seq_start=None,
        out_dtype=torch.bfloat16,
        core_shape=LARGE,
        tail=(),
        fp64=False,
        complex=complex_table,
        scattered=scattered,
    )


@pytest.mark.parametrize("target", [NVIDIA, AMD], ids=lambda t: t.vendor)
@pytest.mark.parametrize(
    "kind", [recipe(complex_table=True), recipe(scattered=True)], ids=["complex", "scattered"]
)
@pytest.mark.parametrize(
    ("lowerings", "name"), [(rotary.LOWERINGS, "x"), (rotary_pair.LOWERINGS, "q")], ids=["one", "pair"]
)
def test_size_decides_and_more_of_it_where_the_host_calls(
    lowerings: tuple[Lowering[Any], ...], name: str, target: Target, kind: Recipe
) -> None:
    """Inductor launches the Triton kernel; aiter's is an opaque call."""
    pays = {low.name: _of_size(low, name, target, kind) for low in lowerings}
    assert [pays["triton"](shape).pays for shape in (LARGE, MIDDLE, SMALL)] == [True, True, False]
    assert [pays["aiter"](shape).pays for shape in (LARGE, MIDDLE, SMALL)] == [True, False, False]
    assert "costs the host more" in pays["triton"](SMALL).reason


def _of_size(
    lowering: Lowering[Any], name: str, target: Target, kind: Recipe
) -> Callable[[tuple[int, ...]], Verdict]:
    def verdict(shape: tuple[int, ...]) -> Verdict:
        return lowering.pays(Arguments({name: on_meta(shape), "tables": [], "recipe": kind}), target)

    return verdict


def test_a_rotation_in_real_numbers_is_left_to_inductor() -> None:
    verdict = rotary.kernel_pays(NVIDIA, on_meta(LARGE), [], recipe(), launched=True)
    assert not verdict.pays and "nearly as well" in verdict.reason


def test_complex_numbers_go_at_any_size() -> None:
    for target in (NVIDIA, AMD, CPU):
        real = next(low for low in rotary.LOWERINGS if low.name == "real")
        assert real.pays(
            Arguments({"x": on_meta(SMALL), "tables": [], "recipe": recipe(complex_table=True)}), target
        ).pays


def test_a_norm_with_its_rotation_pays_by_size() -> None:
    triton, aiter = qk_norm_rotary.LOWERINGS[:2]
    assert (triton.name, aiter.name) == ("triton", "aiter")
    assert triton.pays(Arguments({"q": [on_meta(LARGE)]}), NVIDIA).pays
    assert triton.pays(
        Arguments({"q": [on_meta((1, 512, 24, 128)), on_meta((1, 4096, 24, 128))]}), NVIDIA
    ).pays
    assert not triton.pays(Arguments({"q": [on_meta(SMALL)]}), NVIDIA).pays
    assert not triton.pays(Arguments({"q": [on_meta(LARGE)]}), CPU).pays
    assert (
        aiter.pays(Arguments({"q": [on_meta(LARGE)]}), AMD).pays
        and not aiter.pays(Arguments({"q": [on_meta(MIDDLE)]}), AMD).pays
    )


def test_symbolic_sizes_are_opaque_calls_to_the_host() -> None:
    """Inductor writes launches of static sizes only."""
    sizes = ShapeEnv()
    with FakeTensorMode(shape_env=sizes):
        q = torch.empty((1, sizes.create_unbacked_symint(), 24, 128), device="meta")
        assert not qk_norm_rotary.LOWERINGS[0].pays(Arguments({"q": [q]}), NVIDIA).pays


def test_cuda_graphs_spare_the_host() -> None:
    with config.patch({"triton.cudagraphs": True}):
        assert qk_norm_rotary.LOWERINGS[0].pays(Arguments({"q": [on_meta(SMALL)]}), NVIDIA).pays
