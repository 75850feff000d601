"""The fast suite and the whole one: which cases of a test each runs, and how many drawn examples.

`make test` runs the fast suite with `-m "not exhaustive"`; without that, pytest runs everything.
`make test-all` adds `--codegen`: graphs that tests rewrite are compiled to C++ and run.

    @pytest.mark.pairwise                   # The fast suite runs a subset of the combinations of
                                            # parameters, in which every two values meet.
    @settings(max_examples=examples(100))   # The fast suite draws a fifth of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

import pytest

LEAST_EXAMPLES = 10

_everything = True
_codegen = False


def choose(config: pytest.Config) -> None:
    """Read off pytest's arguments which suite runs."""
    global _everything, _codegen
    _everything = "not exhaustive" not in config.option.markexpr
    _codegen = config.option.codegen


def everything() -> bool:
    return _everything


def codegen() -> bool:
    """Whether tests that need no generated code compile it all the same."""
    return _codegen


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
            chosen = set(pairwise([_values(case) for case in cases]))
            for position, case in enumerate(cases):
                if position not in chosen:
                    case.add_marker(pytest.mark.exhaustive)


def _values(case: pytest.Function) -> dict[str, Hashable]:
    """What tells the case from the others: for each `parametrize`, the values that it gave."""
    given = {name: id(value) for name, value in case.callspec.params.items()}
    values: dict[str, Hashable] = {}
    for mark in case.iter_markers("parametrize"):
        names = mark.args[0]
        listed = names.replace(",", " ").split() if isinstance(names, str) else names
        values[",".join(listed)] = tuple(given.pop(name) for name in listed)
    return {**values, **given}


def pairwise(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Positions of cases, chosen greedily, in which all pairs of values meet that meet anywhere.

    cases: by parameter, its value. A single parameter keeps all its values.
    """
    pairs = [_pairs(case) for case in cases]
    missing = set().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)


def _pairs(case: Mapping[str, Hashable]) -> set[tuple[tuple[str, Hashable], ...]]:
    values = sorted(case.items(), key=lambda item: item[0])
    return {(value,) for value in values} | set(combinations(values, 2))
