"""Values picked so that choices meet in few cases; which choices there are need not be known."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import Any

#: The name of a choice, and its value in words.
Choice = tuple[str, str]
#: So many cases in a row that bring nothing new end the search.
PATIENCE = 2


class Covering:
    """Picks a value for each choice of a case: the one that meets most others for the first time.

    together: how many choices are to meet in each combination of their values. coarse: each value
    is met, but of more than two values only absent and present meet other choices.
    """

    def __init__(self, together: int, coarse: bool, seed: int = 0) -> None:
        self._others = together - 1
        self._coarse = coarse
        self._random = random.Random(seed)
        self._met: set[tuple[Choice, ...]] = set()
        self._uses: Counter[Choice] = Counter()
        #: By name, of all cases so far: what of its values meets other choices.
        self._known: dict[str, set[Choice]] = defaultdict(set)
        self._chosen: dict[str, Choice] = {}
        self._made: dict[str, str] = {}
        self._new = self._idle = 0

    def begin(self) -> bool:
        """Begin a case; False once the last ones have brought nothing new."""
        self._idle = 0 if self._new else self._idle + 1
        self._chosen, self._made, self._new = {}, {}, 0
        return self._idle <= PATIENCE

    def __call__(self, name: str, *values: Any) -> Any:
        options = {str(value): value for value in values}
        if self._made.get(name) in options:
            return options[self._made[name]]
        chosen = self._chosen.values()
        groups = [*combinations(chosen, min(self._others, len(chosen)))]
        met = {label: self._meets(name, label, options, groups) for label in options}

        def gain(label: str) -> tuple[int, int, int, float]:
            new = len(met[label] - self._met)
            kind = self._kind(name, label, options)
            ahead = 0 if kind is None else self._ahead(name, kind)
            return new, ahead, -self._uses[name, label], self._random.random()

        label = max(options, key=gain)
        self._new += len(met[label] - self._met)
        self._met |= met[label]
        self._uses[name, label] += 1
        self._made[name] = label
        kinds = {each: self._kind(name, each, options) for each in options}
        self._known[name] |= {kind for kind in kinds.values() if kind is not None}
        kind = kinds[label]
        if kind is not None:
            self._chosen[name] = kind
        return options[label]

    def _ahead(self, name: str, here: Choice) -> int:
        """With how many values of choices to come it would meet for the first time."""
        size = min(max(self._others - 1, 0), len(self._chosen))
        groups = [*combinations(self._chosen.values(), size)]
        later = [
            kind for known, kinds in self._known.items()
            if known != name and known not in self._made for kind in kinds
        ]  # fmt: skip
        return sum((*group, here, kind) not in self._met for group in groups for kind in later)

    def _meets(
        self, name: str, label: str, options: Mapping[str, Any], groups: list[tuple[Choice, ...]]
    ) -> set[tuple[Choice, ...]]:
        kind = self._kind(name, label, options)
        return {((name, label),)} | {(*group, kind) for group in groups if kind is not None}

    def _kind(self, name: str, label: str, options: Mapping[str, Any]) -> Choice | None:
        """What of a value meets other choices."""
        if not self._coarse or len(options) == 2:
            return name, label
        if "None" not in options:
            return None
        return name, label if label == "None" else "present"

    def said(self) -> str:
        """The case in words."""
        return ", ".join(f"{name}={label}" for name, label in self._made.items())
