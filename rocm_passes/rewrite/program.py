"""One rewritten site as two small programs over the same inputs: the graph's own nodes, and what
replaced them.

The programs hold no graph nodes. They can be run on any tensors of the inputs' shapes, and written
as Python code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rocm_passes.fx.nodes import aten

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


class Unverifiable(Exception):
    """The site cannot be run by itself. The message is the reason in words."""


@dataclass(frozen=True)
class Ref:
    """A value by its name."""

    name: str


@dataclass(frozen=True)
class Input:
    """A value that enters the site: a tensor to draw, or a number that is known."""

    name: str
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    number: int | float | None = None


@dataclass(frozen=True)
class Step:
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What the graph expects of a result.

    strides: those that a reader depends on, or that an operator of this package told the graph;
    None for ATen nodes, which Inductor lays out. may_view: it is no operator of this package: these
    return memory of their own.
    """

    dtype: torch.dtype
    strides: tuple[int, ...] | None
    may_view: bool


@dataclass(frozen=True)
class Program:
    """original, replacement: steps in order. outputs, results: the names of what each of them
    returns.

    reduced: which size was made smaller, in words, or "".
    """

    inputs: tuple[Input, ...]
    constants: Mapping[str, torch.Tensor]
    original: tuple[Step, ...]
    replacement: tuple[Step, ...]
    outputs: tuple[str, ...]
    results: tuple[str, ...]
    expected: tuple[Result, ...]
    bytes: int
    device: torch.device
    reduced: str = ""


def run(
    steps: Sequence[Step], names: Sequence[str], values: Mapping[str, Any], wide: bool = False
) -> list[Any]:
    """Run steps over values by name. wide: every floating dtype in them becomes float64."""
    known: dict[str, Any] = {name: _widened(v) if wide else v for name, v in values.items()}

    def argument(found: Any) -> Any:
        if isinstance(found, Ref):
            return known[found.name]
        if isinstance(found, list):
            return [argument(each) for each in found]
        return WIDE.get(found, found) if wide and isinstance(found, torch.dtype) else found

    for step in steps:
        if wide and step.target is aten.view.dtype:
            raise Unverifiable(
                "it reads the bits of a float as another type: that has no meaning in float64"
            )
        args = [argument(each) for each in step.args]
        known[step.name] = step.target(*args, **{k: argument(v) for k, v in step.kwargs.items()})
    return [known[name] for name in names]


def _widened(value: Any) -> Any:
    return (
        value.to(WIDE.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value
    )


def reduced(program: Program, limit: int) -> Program:
    """The program with one batch or token size made smaller, so that it needs no more than `limit`
    bytes.

    The size is the largest of the largest input that is neither its last nor its channels (dim 1 of
    four dims and more). Every multiple of it in shapes and arguments becomes the same multiple of
    the smaller one.
    """
    if program.bytes <= limit:
        return program
    largest = max(program.inputs, key=lambda i: torch.Size(i.shape).numel())
    fixed = {largest.shape[-1]} if len(largest.shape) else set()
    fixed |= {largest.shape[1]} if len(largest.shape) >= 4 else set()
    size = max((s for s in largest.shape if s not in fixed), default=1)
    factor = -(-program.bytes // limit)
    smaller = size // factor - size // factor % 2
    if smaller < 2:
        raise Unverifiable(
            f"it needs {program.bytes >> 20} MiB, the limit is {limit >> 20} MiB, and no size can "
            "be reduced"
        )

    def change(found: Any) -> Any:
        if isinstance(found, (list, tuple)):
            return type(found)(change(each) for each in found)
        if isinstance(found, bool) or not isinstance(found, int) or not size <= found < 2**31:
            return found
        return found // size * smaller if found % size == 0 else found

    def step(each: Step) -> Step:
        return replace(
            each, args=change(each.args), kwargs={k: change(v) for k, v in each.kwargs.items()}
        )

    def entering(each: Input) -> Input:
        shape = change(each.shape)
        return replace(
            each, shape=shape, strides=_dense(shape, each.strides), number=change(each.number)
        )

    return replace(
        program,
        inputs=tuple(map(entering, program.inputs)),
        original=tuple(map(step, program.original)),
        replacement=tuple(map(step, program.replacement)),
        reduced=f"size {size} reduced to {smaller}",
    )


def _dense(shape: Sequence[int], like: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose dims lie in the order of the given strides. Expanded dims
    stay so.
    """
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (like[d], -d)):
        if like[dim] != 0:
            strides[dim], step = step, step * shape[dim]
    return tuple(strides)
