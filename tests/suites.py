"""The fast suite and the whole one: which cases of a test each runs, and how many drawn examples.

`make test` runs the fast suite with `-m "not exhaustive"`; without that, pytest runs everything.

    @pytest.mark.pairwise                   # The fast suite runs a subset of the combinations of
                                            # parameters, in which every two values meet.
    @settings(max_examples=examples(100))   # The fast suite draws a fifth of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import pytest

LEAST_EXAMPLES = 10

_everything = True


def choose(config: pytest.Config) -> None:
    """Read off pytest's arguments which suite runs."""
    global _everything
    _everything = "not exhaustive" not in config.option.markexpr


def everything() -> bool:
    return _everything


def examples(number: int) -> int:
    """How many examples Hypothesis draws: all in the whole suite, a fifth in the fast one."""
    return number if _everything else min(number, max(number // 5, LEAST_EXAMPLES))


def mark_exhaustive(items: Iterable[pytest.Item]) -> None:
    """Mark what the fast suite leaves out of tests that are marked pairwise."""
    by_test: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            by_test[item.nodeid.split("[")[0]].append(item)
    for cases in by_test.values():
        if len(cases) > 1:
            chosen = set(pairwise([case.callspec.indices for case in cases]))
            for position, case in enumerate(cases):
                if position not in chosen:
                    case.add_marker(pytest.mark.exhaustive)


def pairwise(cases: Sequence[Mapping[str, int]]) -> list[int]:
    """Positions of cases, chosen greedily, in which all pairs of values meet that meet anywhere.

    cases: for each parameter, the index of its value. A single parameter keeps all its values.
    """
    pairs = [_pairs(case) for case in cases]
    missing = set().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)


def _pairs(case: Mapping[str, int]) -> set[tuple[tuple[str, int], ...]]:
    values = sorted(case.items())
    return {(value,) for value in values} | set(combinations(values, 2))
