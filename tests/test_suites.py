"""The fast suite leaves out combinations, and no value of any parameter."""

from __future__ import annotations

from itertools import combinations, product

from hypothesis import given
from hypothesis import strategies as st

from tests.suites import covering


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_every_two_values_of_two_parameters_meet(sizes: list[int]) -> None:
    cases = [dict(zip("abcd", values, strict=False)) for values in product(*map(range, sizes))]
    chosen = covering(cases, 2)

    def met(positions: list[int]) -> set[object]:
        of = min(2, len(sizes))
        return {pair for i in positions for pair in combinations(sorted(cases[i].items()), of)}

    assert met(chosen) == met(list(range(len(cases))))


def test_most_of_a_product_is_left_out() -> None:
    cases = [dict(zip("abcd", values, strict=True)) for values in product(range(3), repeat=4)]
    assert len(cases) == 81
    assert len(covering(cases, 2)) <= 15


def test_the_cases_of_one_parameter_all_stay() -> None:
    assert covering([{"a": i} for i in range(5)], 2) == [0, 1, 2, 3, 4]


def test_each_value_needs_as_many_cases_as_the_longest_parameter_has_values() -> None:
    cases = [{"a": a, "b": b} for a in range(3) for b in range(4)]
    chosen = covering(cases, 1)
    assert len(chosen) == 4
    assert {cases[i]["a"] for i in chosen} == {0, 1, 2}
    assert {cases[i]["b"] for i in chosen} == {0, 1, 2, 3}
