"""When a kernel is taken by itself: by size, spelling and CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rocm_passes.ops.qk_norm_rotary import SpelledQkNormRotary, Streams
from rocm_passes.ops.rotary import SpelledRotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.ops.rotary_pair import SpelledRotaryPair
from rocm_passes.policy import Verdict, verdict
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
@pytest.mark.parametrize("operator", ["rotary", "rotary_pair"])
def test_size_decides_and_more_of_it_where_the_host_calls(
    operator: str, target: Target, kind: Recipe
) -> None:
    """Inductor launches the Triton kernel; aiter's is an opaque call."""
    sizes = (LARGE, MIDDLE, SMALL)
    triton = [rotation(operator, "triton", target, shape, kind) for shape in sizes]
    aiter = [rotation(operator, "aiter", AMD, shape, kind) for shape in sizes]
    assert [said.pays for said in triton] == [True, True, False]
    assert [said.pays for said in aiter] == [True, False, False]
    assert "costs the host more" in triton[2].reason


def rotation(
    operator: str, lowering: str, target: Target, shape: tuple[int, ...], kind: Recipe
) -> Verdict:
    x = on_meta(shape)
    one, pair = SpelledRotary(x, [], kind), SpelledRotaryPair(x, x, [], kind, kind)
    return verdict(operator, lowering, one if operator == "rotary" else pair, target)


def normed(lowering: str, target: Target, *q: Tensor) -> bool:
    alone = Streams((), (), (), (recipe(),), (recipe(), ()), None, False, False, True)
    call = SpelledQkNormRotary(q, [], [], [], [], alone)
    return verdict("qk_norm_rotary", lowering, call, target).pays


def test_a_rotation_in_real_numbers_is_left_to_inductor() -> None:
    said = rotation("rotary", "triton", NVIDIA, LARGE, recipe())
    assert not said.pays and "nearly as well" in said.reason


def test_complex_numbers_go_at_any_size() -> None:
    for target in (NVIDIA, AMD, CPU):
        assert rotation("rotary", "real", target, SMALL, recipe(complex_table=True)).pays


def test_a_norm_with_its_rotation_pays_by_size() -> None:
    assert normed("triton", NVIDIA, on_meta(LARGE))
    assert normed("triton", NVIDIA, on_meta((1, 512, 24, 128)), on_meta((1, 4096, 24, 128)))
    assert not normed("triton", NVIDIA, on_meta(SMALL))
    assert not normed("triton", CPU, on_meta(LARGE))
    assert normed("aiter", AMD, on_meta(LARGE)) and not normed("aiter", AMD, on_meta(MIDDLE))


def test_symbolic_sizes_are_opaque_calls_to_the_host() -> None:
    """Inductor writes launches of static sizes only."""
    sizes = ShapeEnv()
    with FakeTensorMode(shape_env=sizes):
        q = torch.empty((1, sizes.create_unbacked_symint(), 24, 128), device="meta")
        assert not normed("triton", NVIDIA, q)


def test_cuda_graphs_spare_the_host() -> None:
    with config.patch({"triton.cudagraphs": True}):
        assert normed("triton", NVIDIA, on_meta(SMALL))
