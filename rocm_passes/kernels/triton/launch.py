"""Launching a kernel: at once, or written down for Inductor, which then launches it among its own.

A launch from Python costs the host several times what one in Inductor's generated code does. So where an
operator is lowered, its kernels' Python runs once over fake tensors, with its launches written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rocm_passes.kernels.triton.common import device_guard, launch_warps


@dataclass(frozen=True)
class Launch:
    """A launch of `kernel` over `grid`; `arguments` by name: tensors, numbers and constexprs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int


_written: ContextVar[list[Launch] | None] = ContextVar("launches written down", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, **constexprs: Any) -> None:
    """`kernel[grid](*args, **constexprs)` on the device of the first argument, a tensor.

    num_warps: counted for warps of 32 lanes (`launch_warps`).
    """
    x = args[0]
    assert isinstance(x, Tensor), "a kernel's first argument is a tensor"
    warps = launch_warps(num_warps, x)
    launches = _written.get()
    if launches is not None:
        named = dict(zip(kernel.arg_names, args, strict=False)) | constexprs
        launches.append(Launch(kernel, grid, named, warps))
        return
    with device_guard(x):
        kernel[grid](*args, **constexprs, num_warps=warps)


@contextmanager
def written_down() -> Iterator[list[Launch]]:
    """Within it, `launch` runs nothing and appends to the list that is given."""
    launches: list[Launch] = []
    token = _written.set(launches)
    try:
        yield launches
    finally:
        _written.reset(token)
