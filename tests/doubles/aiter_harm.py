"""What the doubles of aiter's functions share: checks that raise where the real one does harm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)
ROUNDING_BF16 = ("gfx950", "gfx1200", "gfx1201", "gfx1250")


class ContractViolation(AssertionError):
    """The real aiter would have died, or answered with garbage."""


def hold(condition: bool, harm: str) -> None:
    if not condition:
        raise ContractViolation(harm)


def insist(condition: bool, message: str) -> None:
    """A check of aiter's own in Python."""
    if not condition:
        raise AssertionError(message)


def span_bytes(t: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def reachable(*tensors: Tensor) -> None:
    for t in tensors:
        hold(not isinstance(t, FakeTensor), "a fake tensor has no memory")
        hold(t.numel() > 0, "empty: a grid of 0 blocks leaves a sticky launch error")
        hold(
            max(span_bytes(t), t.numel() * t.element_size()) < 2**31, "int32 byte offset overflows"
        )


def same_bits(t: Tensor, like: Tensor) -> None:
    hold(t.dtype == like.dtype, f"the bits of {t.dtype} are read as {like.dtype}")


def parameter(t: Tensor, length: int, like: Tensor) -> None:
    same_bits(t, like)
    hold(t.is_contiguous(), "a strided parameter is read as contiguous")
    hold(t.numel() >= length, "reads past the end of a parameter")
    hold(t.dim() == 1 and t.numel() == length, "a parameter of another shape is misread")
    hold(
        t.storage_offset() * t.element_size() % 4 == 0,
        "a parameter that does not begin at a whole word",
    )


def single(t: Tensor) -> Tensor:
    """float32 with denormals flushed to zero."""
    value = t.to(torch.float32)
    return torch.where(value.abs() < torch.finfo(torch.float32).tiny, value * 0, value)


@dataclass(frozen=True)
class Logged:
    """One call of a function of aiter's. harm: what it would have done, or None."""

    function: str
    shapes: tuple[tuple[int, ...], ...]
    harm: str | None


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Machine whose calls are written into the machine's log."""

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        shapes = tuple(tuple(t.shape) for t in given)
        name = function.__name__
        try:
            result = function(self, *args, **kwargs)
        except Exception as error:
            self.log.append(Logged(name, shapes, f"{type(error).__name__}: {error}"))
            raise
        self.log.append(Logged(name, shapes, None))
        return result

    return call
