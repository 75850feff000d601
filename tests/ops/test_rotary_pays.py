"""When a kernel is taken by itself: by size, spelling and CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._inductor import config

from rocm_passes.ops import qk_norm_rotary, rotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

NVIDIA = Target("nvidia", "sm_90", "H200", torch.__version__, "3.6")
AMD = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6")
CPU = Target("cpu", "", "CPU", torch.__version__, None)
LARGE, SMALL = (1, 32760, 40, 128), (1, 4608, 24, 128)


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
def test_a_large_rotation_of_these_spellings_pays(target: Target, kind: Recipe) -> None:
    assert rotary.kernel_pays(target, on_meta(LARGE), [], kind).pays
    small = rotary.kernel_pays(target, on_meta(SMALL), [], kind)
    assert not small.pays and "host takes longer" in small.reason


def test_a_rotation_in_real_numbers_is_left_to_inductor() -> None:
    verdict = rotary.kernel_pays(NVIDIA, on_meta(LARGE), [], recipe())
    assert not verdict.pays and "nearly as well" in verdict.reason


def test_complex_numbers_go_at_any_size() -> None:
    for target in (NVIDIA, AMD, CPU):
        real = next(low for low in rotary.LOWERINGS if low.name == "real")
        assert real.pays(target, x=on_meta(SMALL), tables=[], recipe=recipe(complex_table=True)).pays


def test_a_norm_with_its_rotation_pays_by_size() -> None:
    pays = qk_norm_rotary.LOWERINGS[0].pays
    assert pays(NVIDIA, q=[on_meta(LARGE)]).pays
    assert pays(NVIDIA, q=[on_meta((1, 2048, 30, 128)), on_meta((1, 2560, 30, 128))]).pays
    assert not pays(NVIDIA, q=[on_meta(SMALL)]).pays
    assert not pays(CPU, q=[on_meta(LARGE)]).pays


def test_cuda_graphs_spare_the_host() -> None:
    with config.patch({"triton.cudagraphs": True}):
        assert qk_norm_rotary.LOWERINGS[0].pays(NVIDIA, q=[on_meta(SMALL)]).pays
