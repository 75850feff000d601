"""The fast suite and the whole one: which cases of a test each runs, and how many drawn examples.

`make test` runs the fast suite with `-m "not exhaustive"`; without that, pytest runs everything.
`make test-all` adds `--codegen`: graphs that tests rewrite are compiled to C++ and run.

    @pytest.mark.pairwise                   # The fast suite runs a subset of the combinations of
                                            # parameters, in which every two values meet.
    @pytest.mark.each_value                 # The same, with every value in one combination.
    @settings(max_examples=examples(100))   # The fast suite draws a fifth of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from itertools import combinations

import pytest

from rocm_passes.target import AMD_ARCHITECTURES
from tests import zoo

LEAST_EXAMPLES = 10
_TOGETHER = {"pairwise": 2, "each_value": 1}

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


def architectures() -> tuple[str, ...]:
    """Those that kernels are compiled for; in the fast suite one with waves of 64 lanes and one
    with waves of 32.
    """
    return tuple(AMD_ARCHITECTURES) if _everything else ("gfx942", "gfx1201")


def mark_exhaustive(items: Iterable[pytest.Item]) -> None:
    """Mark what the fast suite leaves out of tests that are marked pairwise or each_value."""
    by_test: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        left_out = item.get_closest_marker("exhaustive")
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not left_out:
            by_test[item.nodeid.split("[")[0]].append(item)
    for cases in by_test.values():
        together = _together(cases[0])
        if together is not None:
            chosen = set(covering([_values(case) for case in cases], together))
            for position, case in enumerate(cases):
                if position not in chosen:
                    case.add_marker(pytest.mark.exhaustive)


def models_together(items: list[pytest.Item]) -> None:
    """Move the tests of whole models to the end, each model's together.

    A model is then traced in one of xdist's processes, and once (`tests.zoo.traced`).
    """
    names = {model.name for model in zoo.cases()}
    items.sort(key=lambda item: _model(item, names))


def _model(item: pytest.Item, names: Set[str]) -> str:
    """The name of the zoo's model that the test is marked with or parametrized by, or nothing."""
    if marked := item.get_closest_marker("model"):
        return str(marked.args[0])
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    for value in given:
        name = value.name if isinstance(value, zoo.Case) else value
        if isinstance(name, str) and name in names:
            return name
    return ""


def _together(case: pytest.Function) -> int | None:
    """How many values of different parameters are to meet; the mark nearest to the test says it."""
    for mark in case.iter_markers():
        if mark.name in _TOGETHER:
            return _TOGETHER[mark.name]
    return None


def _values(case: pytest.Function) -> dict[str, Hashable]:
    """What tells the case from the others: for each `parametrize`, the values that it gave."""
    given = {name: id(value) for name, value in case.callspec.params.items()}
    values: dict[str, Hashable] = {}
    for mark in case.iter_markers("parametrize"):
        names = mark.args[0]
        listed = names.replace(",", " ").split() if isinstance(names, str) else names
        values[",".join(listed)] = tuple(given.pop(name) for name in listed)
    return {**values, **given}


def covering(cases: Sequence[Mapping[str, Hashable]], together: int) -> list[int]:
    """Positions of cases, chosen greedily, in which all values meet that meet anywhere.

    together: 2 for all pairs of values of different parameters, 1 for each value alone.
    cases: by parameter, its value. A single parameter keeps all its values.
    """
    met = [_met(case, together) for case in cases]
    missing = set().union(*met)
    chosen: list[int] = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(met[i] & missing))
        chosen.append(best)
        missing -= met[best]
    return sorted(chosen)


def _met(case: Mapping[str, Hashable], together: int) -> set[tuple[tuple[str, Hashable], ...]]:
    values = sorted(case.items(), key=lambda item: item[0])
    return set(combinations(values, min(together, len(values))))
