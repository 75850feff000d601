"""The rotary benchmark: its cases are told apart, a wrong result is not timed, and rows stand under
their heads.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rocm_passes.bench.rotary import HEAD, Row, check
from rocm_passes.bench.rotary_cases import Case, cases, rope_half
from tests.idioms.norm_cases import BF16, draw


def half(error: float) -> Case:
    """A rotation whose `ours` is off by so many last places."""

    def original(
        q: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        return (rope_half(q, cos, sin),)

    def ours(q: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        exact = rope_half(q.double(), cos.double(), sin.double())
        return ((exact * (1 + error * torch.finfo(BF16).eps)).to(BF16),)

    return Case("half", lambda: (), original, ours)


def inputs() -> tuple[Tensor, ...]:
    theta = draw(4, 1, 8).repeat(1, 1, 2)
    return draw(1, 4, 3, 16, dtype=BF16), theta.cos().to(BF16), theta.sin().to(BF16)


def test_names_tell_the_cases_apart() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) == 13


def test_an_exact_result_passes() -> None:
    ours, eager = check(half(0.0), inputs())
    assert 0 < ours < eager


def test_a_wrong_result_is_not_timed() -> None:
    with pytest.raises(AssertionError, match="last places beyond eager"):
        check(half(8.0), inputs())


@pytest.mark.parametrize("inductor", [None, 20.0])
def test_rows_stand_under_their_heads(inductor: float | None) -> None:
    line = str(Row("a rotation", 10.0, 12.5, inductor, 0.0, 0.0))
    assert line.split()[2:] == [
        "10.0",
        "12.5",
        "1.25",
        *([] if inductor is None else ["20.0", "2.00"]),
    ]
    assert len(line) == len(HEAD) - (0 if inductor else 17)
