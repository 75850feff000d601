"""Launching a kernel: at once, or written down for Inductor, which then launches it among its own.

A launch from Python costs the host several times what one in Inductor's generated code does. So
where an operator is lowered, its kernels' Python runs once over fake tensors, with its launches
written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.kernels.triton.common import INT32_MAX, device_guard, launch_warps

#: Programs along the first axis of a grid, and along each of the others.
GRID_LIMITS = (INT32_MAX, 65535, 65535)
#: Lanes along the first axis that HIP launches: it counts threads, and not blocks, in 32 bits.
HIP_LANES = 2**32 - 1


@dataclass(frozen=True)
class Launch:
    """A launch of `kernel` over `grid`; `arguments` by name: tensors, numbers and constexprs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int

    def run(self) -> None:
        with device_guard(next(a for a in self.arguments.values() if isinstance(a, Tensor))):
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps)


_written: ContextVar[list[Launch] | None] = ContextVar("launches written down", default=None)


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, **constexprs: Any
) -> None:
    """`kernel[grid](*args, **constexprs)` on the device of the first argument, a tensor.

    An operand that is absent (None) is given the first one's pointer, which the kernel does not
    read there.
    num_warps: counted for warps of 32 lanes (`launch_warps`). Raises ValueError for a grid that is
    too large.
    """
    x = args[0]
    assert isinstance(x, Tensor), "a kernel's first argument is a tensor"
    args = tuple(x if arg is None else arg for arg in args)
    warps = launch_warps(num_warps, x)
    # 32 lanes for each warp that the caller counts, whatever the hardware's warps.
    check_grid(grid, 32 * num_warps)
    launches = _written.get()
    if launches is not None:
        named = dict(zip(kernel.arg_names, args, strict=False)) | constexprs
        launches.append(Launch(kernel, grid, named, warps))
        return
    with device_guard(x):
        kernel[grid](*args, **constexprs, num_warps=warps)


def check_grid(grid: tuple[int, ...], lanes: int) -> None:
    """Raise ValueError where the driver would refuse the grid, or count its programs modulo 2^32.

    lanes: of one program. All kernels number their programs along the first axis, which alone may
    be long.
    """
    for size, limit in zip(grid, GRID_LIMITS, strict=False):
        if size > limit:
            raise ValueError(
                f"a grid of {grid} programs: at most {limit} are possible along that axis"
            )
    if torch.version.hip and grid[0] * max(lanes, 64) > HIP_LANES:
        raise ValueError(
            f"a grid of {grid[0]} programs of {lanes} lanes: HIP launches {HIP_LANES} lanes"
        )


@contextmanager
def written_down() -> Iterator[list[Launch]]:
    """Within it, `launch` runs nothing and appends to the list that is given."""
    launches: list[Launch] = []
    token = _written.set(launches)
    try:
        yield launches
    finally:
        _written.reset(token)
