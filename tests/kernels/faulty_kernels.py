"""Kernels that run in Triton's interpreter and do not compile, each for another reason."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from rocm_passes.kernels.triton.launch import Launch


@triton.jit
def divides_by_nothing(x_ptr, HEADS: tl.constexpr):
    """The branch of the absent tensor is compiled, too."""
    if tl.program_id(0) < 1:
        tl.store(x_ptr, tl.load(x_ptr) * 2)
    else:
        tl.store(x_ptr, tl.load(x_ptr) * (1.0 / HEADS))


@triton.jit
def has_a_range_of_three(x_ptr, size, N: tl.constexpr):
    if size > 100:
        tl.store(x_ptr + tl.arange(0, N), 1.0)


@triton.jit
def casts_an_integer(x_ptr, size):
    """An integer that is 1 is a constexpr."""
    tl.store(x_ptr, size.to(tl.float32))


@triton.jit
def asserts(x_ptr, N: tl.constexpr):
    tl.static_assert(N % 2 == 0, "N is odd")
    tl.store(x_ptr, N)


@triton.jit
def changes_its_type(x_ptr, size):
    """A value has one type after both sides of a branch."""
    found = tl.load(x_ptr)
    if size > 3:
        found = found.to(tl.int32)
    tl.store(x_ptr, found)


ARGUMENTS: Mapping[Any, dict[str, Any]] = {
    divides_by_nothing: {"HEADS": 0},
    has_a_range_of_three: {"size": 5, "N": 3},
    casts_an_integer: {"size": 1},
    asserts: {"N": 3},
    changes_its_type: {"size": 2},
}


def launches() -> list[Launch]:
    x = torch.zeros(16)
    return [Launch(kernel, (1,), {"x_ptr": x, **given}, 4) for kernel, given in ARGUMENTS.items()]
