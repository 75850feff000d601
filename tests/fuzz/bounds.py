"""How far a result may lie from float64.

The bound is a multiple of the error that the program has without rewrites. That error is one draw
of many roundings: where a program amplifies them, another draw can be ten times larger. Seed 400161
has two norms over four nearly equal values; at twenty neighbouring inputs eager's error lies
between 0.002 and 0.06, and the rewritten graph's between 0.0009 and 0.015. So a result beyond the
bound is held once more against the largest error that eager has at neighbouring inputs, each
compared with float64 at that very input. Such a program hides small faults, which programs that
amplify less show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.fuzz.program import placed, widened

#: Allowed: so many times the larger error of eager and of the unfused graph, and so many roundings
#: of the result.
FACTOR, ROUNDINGS = 3.0, 8.0
#: Inputs tried beside the drawn ones where a result exceeds its bound.
NEIGHBOURS = 8

#: (results, inputs behind the call or their gradients)
Given = tuple[list[Tensor], list[Tensor]]
#: The largest error of each.
Errors = tuple[list[float], list[float]]


def error(got: Tensor, exact: Tensor) -> float:
    """The largest difference from float64; infinite where one is not finite."""
    if got.numel() == 0:
        return 0.0
    wide = torch.complex128 if got.is_complex() else torch.float64
    largest = (got.detach().to(wide) - exact.detach().to(wide)).abs().max().item()
    return largest if math.isfinite(largest) else math.inf


def bound(of_eager: float, eager: Tensor, exact: Tensor) -> float:
    if eager.numel() == 0:
        return 0.0
    eps = torch.finfo(eager.dtype).eps if eager.dtype.is_floating_point else 0.0
    return FACTOR * of_eager + ROUNDINGS * eps * (1.0 + exact.detach().abs().max().item())


def errors_nearby(
    eager: Callable[[list[Tensor]], Given | None],
    exact: Callable[[list[Tensor]], Given | None],
    inputs: Sequence[Tensor],
) -> Errors:
    """The largest errors of eager at inputs that are one rounding away; none where it does not run
    there.
    """
    worst: list[list[float]] = [[], []]
    generator = torch.Generator().manual_seed(0)
    for _ in range(NEIGHBOURS):
        drawn = [neighbour(t, generator) for t in inputs]
        found, want = eager([placed(t) for t in drawn]), exact([widened(t) for t in drawn])
        if found is None or want is None:
            continue
        for which, (some, others) in enumerate(zip(found, want, strict=True)):
            now = [error(a, b) for a, b in zip(some, others, strict=True)]
            before = worst[which] or now
            worst[which] = [max(a, b) for a, b in zip(before, now, strict=True)]
    return worst[0], worst[1]


def neighbour(t: Tensor, generator: torch.Generator) -> Tensor:
    """Each element is the same, or the next smaller or larger number of its dtype; it lies as t
    does.
    """
    made = placed(t)
    if not t.dtype.is_floating_point or t.itemsize < 2 or t.numel() == 0:
        return made
    memory = made.as_strided((made.untyped_storage().nbytes() // t.itemsize,), (1,))
    step = torch.randint(-1, 2, memory.shape, generator=generator)
    step[memory == 0] = 0
    memory.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize]).add_(step)
    return made
