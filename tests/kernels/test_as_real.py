"""Complex tables read as real numbers in Inductor's code: a view, where it can be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._inductor.lowering import lowerings
from torch._inductor.utils import run_and_get_code

from rocm_passes.kernels.triton import inductor
from rocm_passes.ops.as_real import AS_REAL

OPAQUE = "torch.ops.rocm_passes.as_real.default("
VIEW = "torch.ops.aten.view_as_real.default("


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """As after a graph of a GPU."""
    torch._dynamo.reset()
    before = set(inductor._registered), dict(lowerings)
    inductor.register()
    yield
    inductor._registered.clear()
    inductor._registered.update(before[0])
    lowerings.clear()
    lowerings.update(before[1])


def table(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.polar(torch.ones(5, 4), torch.rand(5, 4, generator=generator))


def read(z: Tensor) -> Tensor:
    return AS_REAL.overload(z)[1:].sum(-1) * 2


def read_and_written(z: Tensor) -> Tensor:
    found = read(z)
    z.mul_(2)
    return found


def rows_read_and_written(z: Tensor) -> Tensor:
    """Of a view of what is written."""
    found = AS_REAL.overload(z[1:]).sum(-1) * 2
    z.mul_(2)
    return found


def expected(z: Tensor) -> Tensor:
    return torch.view_as_real(z.resolve_conj())[1:].sum(-1) * 2


@pytest.mark.parametrize(
    ("function", "z", "opaque"),
    [
        (read, table(), False),
        # AOTAutograd gives the graph a copy.
        (read, table().conj(), False),
        (read, table().t().contiguous().t(), True),
        (read_and_written, table(), True),
        (rows_read_and_written, table(), True),
    ],
    ids=["view", "conjugated", "transposed", "written", "a view of what is written"],
)
def test_a_view_where_it_can_be_one(
    function: Callable[[Tensor], Tensor], z: Tensor, opaque: bool
) -> None:
    right, given = expected(z), z.clone()
    compiled = torch.compile(function, backend="inductor", dynamic=False)
    with torch.no_grad():
        found, (code,) = run_and_get_code(compiled, z)
    assert (OPAQUE in code, VIEW in code) == (opaque, not opaque)
    torch.testing.assert_close(found, right)
    assert torch.equal(z, given if function is read else given * 2)
