"""A Triton lowering: it needs Triton and its kernel's module, and only allocates and launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rocm_passes.ops.operator import Lowering, Operator
from rocm_passes.target import Requirement, needs_import, needs_triton

#: The key of a node's meta that says who launches its kernels: the option `launch`.
LAUNCHED_BY = "rocm_passes_launched_by"


def requires(kernel: str) -> tuple[Requirement, ...]:
    """What a kernel needs. kernel: its module, below `kernels/triton`."""
    return (needs_triton, needs_import(f"{__package__}.{kernel}"))


def register(
    operator: Operator[Any],
    kernel: str,
    run: Callable[[Any], Any],
    first: bool = False,
    **functions: Any,
) -> Lowering[Any]:
    """Register `run` as the operator's lowering "triton".

    kernel: the module that `run` imports, below `kernels/triton`. functions: refuses, note,
    other_bits, as of `Lowering`.
    """
    lowering = Lowering("triton", requires(kernel), run=run, launches=True, **functions)
    return operator.register(lowering, first=first)
