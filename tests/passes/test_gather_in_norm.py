"""Upsampled multipliers and addends of GroupNorm: read by index where one index serves both, else
left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from rocm_passes.ops import group_norm as op
from rocm_passes.target import triton_is_interpreted
from tests.idioms.norm_cases import BF16, F32, check, draw
from tests.rewriting import Rewritten

pytestmark = [
    pytest.mark.pairwise,
    pytest.mark.skipif(
        not triton_is_interpreted(),
        reason="a CPU graph has Triton's kernels in its interpreter only",
    ),
]

aten = torch.ops.aten
C, ZQ = 8, 4
SIZE = (5, 6, 10)


def whole(z: Tensor, size: tuple[int, ...] = SIZE, **how: Any) -> Tensor:
    return F.interpolate(z, size=size, **how)


def first_and_rest(z: Tensor) -> Tensor:
    """CogVideoX: the first frame is upsampled in space only."""
    return torch.cat(
        [whole(z[:, :, :1], (1, *SIZE[1:])), whole(z[:, :, 1:], (SIZE[0] - 1, *SIZE[1:]))], 2
    )


def spatial_norm(
    x: Tensor, z: Tensor, wy: Tensor, wb: Tensor, y_up: Any = whole, b_up: Any = None
) -> Tensor:
    """CogVideoX's SpatialNorm3D, then SiLU; the same upsampled tensor for both convolutions where
    b_up is None.
    """
    up = y_up(z)
    y = F.conv3d(up, wy, wy[:, 0, 0, 0, 0])
    b = F.conv3d(up if b_up is None else b_up(z), wb, wb[:, 0, 0, 0, 0])
    return F.silu(F.group_norm(x, 2, eps=1e-6) * y + b)


def arguments(
    dtype: torch.dtype = F32, small: tuple[int, ...] = (3, 3, 5), n: int = 1
) -> tuple[Tensor, ...]:
    w = [draw(C, ZQ, 1, 1, 1, dtype=dtype, seed=s) for s in (2, 3)]
    return draw(n, C, *SIZE, dtype=dtype), draw(n, ZQ, *small, dtype=dtype, seed=1), *w


def run(
    fn: Callable[..., Any], *args: Tensor, lowering: str = "triton", **options: Any
) -> Rewritten:
    """Within the accuracy bar; Triton's interpreter truncates to bfloat16."""
    chosen = {"select": "auto", "lowering": {"group_norm": lowering}, **options}
    return check(fn, *args, options=chosen, units=2.0)


def norm_of(r: Rewritten) -> dict[str, Any]:
    (node,) = r.after[0].find_nodes(op="call_function", target=op.GROUP_NORM.overload)
    return op.GROUP_NORM.call_of(node).arguments()


def entry(r: Rewritten) -> Any:
    (found,) = [e for e in r.sites if e.idiom == "group_norm"]
    return found


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
@pytest.mark.parametrize("up", [whole, first_and_rest])
@pytest.mark.parametrize("n", [1, 2])
def test_read_by_index(up: Any, layout: str, dtype: torch.dtype, n: int) -> None:
    r = run(lambda *a: spatial_norm(*a, up), *arguments(dtype, n=n), layout=layout)
    given = norm_of(r)
    for name in ("multiplier", "addend"):
        assert tuple(given[name].meta["val"].shape) == (n, C, 3, 3, 5)
    index = given["pixel_index"].meta["val"]
    assert (tuple(index.shape), index.dtype) == (SIZE, torch.int32)
    # What was upsampled to the norm's size is gone.
    sizes = [
        tuple(v.shape)
        for g in r.after
        for m in g.nodes
        if isinstance(v := m.meta.get("val"), Tensor)
    ]
    assert sizes.count((n, C, *SIZE)) <= 3
    assert (n, ZQ, *SIZE) not in sizes


def test_the_ledger_says_from_how_many_pixels() -> None:
    r = run(spatial_norm, *arguments())
    assert entry(r).parameters["spatial"] is True
    assert (entry(r).parameters["pixels"], entry(r).parameters["source_pixels"]) == (300, 45)


def test_upsampled_without_a_convolution() -> None:
    def fn(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return F.silu(
            F.group_norm(x, 2, eps=1e-6) * torch.cat([y, y], 4) + b[:, :, [0, 1, 1, 2, 2]]
        )

    def gathered(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        at = torch.tensor([0, 1, 1, 2, 2])
        return F.silu(F.group_norm(x, 2, eps=1e-6) * y[:, :, at] + b[:, :, at])

    args = (
        draw(1, C, 5, 6, 10),
        draw(1, C, 2, 6, 10, seed=1)[:, :, [0, 1, 1]],
        draw(1, C, 3, 6, 10, seed=2),
    )
    # 5 frames of 3 are fewer than two copies; 5 of 2 are not.
    assert norm_of(run(gathered, *args))["pixel_index"] is None
    at = torch.tensor([0, 1, 1, 0, 0])

    def of_two(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 2, eps=1e-6) * y[:, :, at] + b[:, :, at])

    args = (args[0], *(draw(1, C, 2, 6, 10, seed=s) for s in (1, 2)))
    assert norm_of(run(of_two, *args))["pixel_index"] is not None


def written_out(r: Rewritten) -> None:
    given = norm_of(r)
    assert given["pixel_index"] is None
    assert all(
        tuple(given[name].meta["val"].shape)[2:] == SIZE for name in ("multiplier", "addend")
    )
    assert "source_pixels" not in entry(r).parameters


def test_unlike_upsampling_is_written_out() -> None:
    """nearest-exact takes other pixels than nearest."""
    exact = lambda z: whole(z, mode="nearest-exact")  # noqa: E731
    written_out(run(lambda *a: spatial_norm(*a, whole, exact), *arguments()))


def test_sources_of_unlike_sizes_are_written_out() -> None:
    written_out(run(lambda *a: spatial_norm(*a, whole, lambda z: whole(z[:, :, :2])), *arguments()))


def test_one_that_is_not_upsampled_is_written_out_with_the_other() -> None:
    def fn(x: Tensor, z: Tensor, wy: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 2, eps=1e-6) * F.conv3d(whole(z), wy) + b)

    x, z, w, _ = arguments()
    written_out(run(fn, x, z, w, draw(1, C, *SIZE, seed=4)))


def test_pieces_of_several_tensors_are_written_out() -> None:
    def fn(x: Tensor, z: Tensor, wy: Tensor, wb: Tensor, cached: Tensor) -> Tensor:
        return spatial_norm(x, z, wy, wb, lambda z: torch.cat([cached, whole(z, (4, 6, 10))], 2))

    written_out(run(fn, *arguments(), draw(1, ZQ, 1, 6, 10, seed=4)))


@pytest.mark.skipif(
    torch.__version__.startswith(("2.11.", "2.12.")),
    reason="torch 2.11 and 2.12 drop the rounding before our passes see the graph",
)
def test_a_cast_behind_the_upsampling_is_written_out() -> None:
    """Rounded where it is read; by index, the norm would read what is not rounded."""
    # In quarters the convolutions are exact in any order of summation, and round to the same.
    x, *others = arguments()
    quarters = [(t * 4).round() / 4 for t in others]

    def fn(x: Tensor, z: Tensor, wy: Tensor, wb: Tensor) -> Tensor:
        y, b = (whole(F.conv3d(z, w)).to(BF16).to(x.dtype) for w in (wy, wb))
        return F.silu(F.group_norm(x, 2, eps=1e-6) * y + b)

    r = run(fn, x, *quarters)
    written_out(r)
    assert norm_of(r)["multiplier"].meta["val"].dtype is BF16


def test_another_lowering_has_them_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written_out(run(spatial_norm, *arguments(), lowering="reference"))


def test_fewer_than_two_copies_are_written_out() -> None:
    written_out(run(spatial_norm, *arguments(small=(4, 6, 10)), select="always"))


def test_the_index_is_that_of_nearest_upsampling() -> None:
    """Evaluated: for each place, the number of the pixel that F.interpolate takes there."""
    r = run(lambda *a: spatial_norm(*a, first_and_rest), *arguments())
    numbers = torch.arange(45.0).reshape(1, 1, 3, 3, 5)
    assert torch.equal(
        evaluated(norm_of(r)["pixel_index"]).double(), first_and_rest(numbers)[0, 0].double()
    )


def evaluated(node: fx.Node) -> Tensor:
    """The value of a node that depends on no input."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), evaluated)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def test_the_index_is_small_beside_what_it_replaces() -> None:
    r = run(spatial_norm, *arguments())
    index = norm_of(r)["pixel_index"].meta["val"]
    assert index.numel() * index.element_size() == 4 * math.prod(SIZE)
