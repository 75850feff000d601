"""What a program gave beside what it should have given, tensor by tensor.

`found` makes a failure of a kind and a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.fuzz.bounds import bound, error

if TYPE_CHECKING:
    from tests.fuzz.check import Failure


def values_unlike(
    found: Callable[..., Failure], got: Sequence[Tensor], unfused: Sequence[Tensor],
    eager: Sequence[Tensor],
    exact: Sequence[Tensor], kind: str, nearby: Sequence[float] = (), times: float = 1.0,
) -> list[Failure]:  # fmt: skip
    """Failures of dtype, shape and value. nearby: errors that eager has at neighbouring inputs."""
    if len(got) != len(eager):
        return [found("shape", message=f"{len(got)} results where eager has {len(eager)}")]
    failures = []
    for i, (g, u, e, x) in enumerate(zip(got, unfused, eager, exact, strict=True)):
        if g.dtype != e.dtype:
            failures.append(found("dtype", message=f"{kind} {i}: {g.dtype}, eager {e.dtype}"))
        elif g.shape != e.shape:
            failures.append(
                found("shape", message=f"{kind} {i}: {tuple(g.shape)}, eager {tuple(e.shape)}")
            )
        else:
            errors = [error(e, x), error(u, x), *nearby[i : i + 1]]
            have, allowed = error(g, x), times * bound(max(errors), e, x)
            if not have <= allowed:
                failures.append(
                    found(kind, message=f"{kind} {i}: error {have:.3g}, allowed {allowed:.3g}")
                )
    return failures


def other_strides(got: Sequence[Tensor], want: Sequence[Tensor]) -> list[int]:
    both = enumerate(zip(got, want, strict=True))
    return [
        i for i, (g, w) in both if g.shape == w.shape and g.numel() and _strides(g) != _strides(w)
    ]


def _strides(t: Tensor) -> list[int]:
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def aliased_unlike(
    found: Callable[..., Failure], got: Sequence[Tensor], unfused: Sequence[Tensor]
) -> list[Failure]:
    other = _sharing(got) ^ _sharing(unfused)
    return (
        [found("aliasing", message=f"unlike the unfused graph: {sorted(other)}")] if other else []
    )


def _sharing(tensors: Sequence[Tensor]) -> set[tuple[int, int]]:
    """Pairs of tensors that share memory, but for empty ones."""
    at = [t.untyped_storage().data_ptr() if t.numel() else -i for i, t in enumerate(tensors, 1)]
    return {(i, j) for j in range(len(at)) for i in range(j) if at[i] == at[j]}


def other_bits(
    found: Callable[..., Failure], got: Sequence[Tensor], unfused: Sequence[Tensor]
) -> list[Failure]:
    """Strict: the unfused graph's bits, each of them."""
    for i, (g, u) in enumerate(zip(got, unfused, strict=True)):
        if g.shape == u.shape and not torch.equal(_bits(g), _bits(u)):
            count = int((_bits(g) != _bits(u)).sum())
            return [found("strict", message=f"output {i}: {count} of {g.numel()} elements differ")]
    return []


def _bits(t: Tensor) -> Tensor:
    """The elements as integers: a zero has a sign."""
    t = torch.view_as_real(t) if t.is_complex() else t
    ints = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return t.detach().contiguous().view(ints[t.itemsize])
