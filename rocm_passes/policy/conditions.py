"""Tests of one quantity of a call, as data: what a rule's condition is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rocm_passes.fx.nodes import known

#: How each relation reads in front of its bound, and what it means.
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda value, bound: value == bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    "is one of": lambda value, bound: value in bound,
    "is not a multiple of": lambda value, bound: value % bound != 0,
}


@dataclass(frozen=True)
class One:
    """A relation of `RELATIONS` between a quantity and a bound."""

    relation: str
    bound: Any

    def holds(self, value: Any) -> bool:
        """Does it hold? Never for None (unknown); for a symbolic value, if it is provable."""
        return value is not None and known(RELATIONS[self.relation](value, self.bound))

    @property
    def is_size(self) -> bool:
        """Is it about how large the quantity is?"""
        return self.relation in (">=", "<")

    def __str__(self) -> str:
        return f"{self.relation} {shown(self.bound)}"


@dataclass(frozen=True)
class All:
    """Several tests of one quantity."""

    tests: tuple[One, ...]

    def holds(self, value: Any) -> bool:
        return all(test.holds(value) for test in self.tests)

    @property
    def is_size(self) -> bool:
        return all(test.is_size for test in self.tests)

    def __str__(self) -> str:
        return " and ".join(map(str, self.tests))


#: What a rule says of one quantity.
Check = One | All


def equals(bound: Any) -> One:
    return One("=", bound)


def at_least(bound: float) -> One:
    return One(">=", bound)


def below(bound: float) -> One:
    return One("<", bound)


def one_of(*bounds: Any) -> One:
    return One("is one of", bounds)


def not_a_multiple_of(bound: int) -> One:
    return One("is not a multiple of", bound)


def both(*tests: One) -> All:
    return All(tests)


def shown(value: Any) -> str:
    """A quantity or a bound as text: numbers with separators."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
