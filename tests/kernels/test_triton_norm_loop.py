"""Programs that take several blocks of rows, one after the other: what each row gives does not
depend on it.
"""

from __future__ import annotations

import pytest
import torch

from rocm_passes.kernels.triton.norms.norm_arguments import Norm, NormKind
from rocm_passes.kernels.triton.norms.norm_plan import NormTile, choose_tile, plan_launch
from tests.kernels import kernel_calls
from tests.on_the_gpu import where_kernels_run

pytestmark = pytest.mark.pairwise

fused_norm = where_kernels_run(kernel_calls.fused_norm)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.each_value
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("tokens", [1, 7, 16, pytest.param(33, marks=pytest.mark.exhaustive)])
def test_a_loop_over_rows_gives_what_single_blocks_give(
    tokens: int, rows: int, kind: NormKind, per_token: bool
) -> None:
    """Two samples: a program's rows end where a sample ends, and tables by row are read at rows
    that are there.
    """
    x, branch = normal(2, tokens, 200, seed=1), normal(2, tokens, 200, seed=2)
    tables = [normal(2, tokens if per_token else 1, 200, seed=seed) for seed in (3, 4, 5)]
    gate, scale, shift = tables
    weight, branch_weight = normal(200, seed=6), normal(200, seed=7)

    def run(loop: int) -> list[torch.Tensor]:
        outs, total = fused_norm(
            x, kind=kind, eps=1e-5, branch=branch, gate=gate, branch_weight=branch_weight,
            branch_eps=1e-6,
            weight=weight, modulations=[(scale, shift), (shift, None)], sum_dtype=x.dtype,
            tile=NormTile(chunk=64, rows=rows, resident=True, num_warps=4, loop=loop),
        )  # fmt: skip
        assert total is not None
        return [*outs, total]

    once = run(1)
    normed = (
        branch.double()
        * (branch.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        * branch_weight
    )
    torch.testing.assert_close(once[-1].double(), x + gate * normed, rtol=1e-5, atol=1e-5)
    for loop in (2, 3, 8):
        for ours, expected in zip(run(loop), once, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("tokens", [3, 5])
def test_a_loop_without_a_branch(tokens: int) -> None:
    x = normal(tokens, 96, seed=1)
    tile = NormTile(chunk=64, rows=1, resident=True, num_warps=4, loop=4)
    (out,), _ = fused_norm(x, kind="rms", eps=1e-6, tile=tile)
    expected = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "rows", "loop"),
    [
        (3840, 4608, 4),
        (2304, 4352, 4),
        (3840, 512, 1),  # Four rows a program would leave a large GPU idle.
        (5120, 32760, 1),  # Two rows would not fit into the registers.
        (128, 100000, 1),
    ],
)
def test_which_rows_go_in_a_loop(width: int, rows: int, loop: int) -> None:
    assert choose_tile(width, chain=True, norm_after_norm_rows=rows).loop == loop
    assert choose_tile(width, chain=True).loop == 1


@pytest.mark.parametrize(
    ("kind", "branch_eps", "loop"),
    [("rms", 1e-6, 4), ("layer", 1e-6, 4), ("none", 1e-6, 1), ("rms", None, 1)],
)
def test_the_loop_is_for_a_norm_behind_a_norm(
    kind: NormKind, branch_eps: float | None, loop: int
) -> None:
    meta = (torch.Size((4608, 3840)), (3840, 1), torch.bfloat16)
    norm = Norm(kind, 1e-6, branch_eps, sum_dtype=torch.bfloat16)
    plan = plan_launch((meta, meta, *[None] * 8), norm, None)
    assert plan.constexprs["LOOP"] == loop
    assert plan.blocks == 4608 // loop
