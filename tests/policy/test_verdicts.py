"""The verdicts of all rules over a grid of calls and targets are those that were recorded.

`python -m tests.policy.test_verdicts` records anew after a row was changed on purpose; the diff
shows what moved.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rocm_passes import policy, registry
from rocm_passes.policy.quantities import Quantities, quantities
from rocm_passes.policy.rules import decide
from rocm_passes.rewrite.match import Idiom
from rocm_passes.target import Target
from tests.policy.calls import TARGETS, calls, surroundings

RECORDED = Path(__file__).parent / "verdicts.txt"


def idioms() -> dict[str, Idiom]:
    """One idiom for each operator that rules are about."""
    return {idiom.rules: idiom for idiom in registry.IDIOMS}


def recorded() -> str:
    """For each lowering and target, a bit for each call, in hexadecimal."""
    lines: dict[str, list[str]] = defaultdict(list)
    for operator, made in calls().items():
        for graphs in (False, True) if "rotary" in operator else (False,):
            found = quantified(operator, made, graphs)
            for low, target in itertools.product(idioms()[operator].lowerings, TARGETS):
                if not low.name.startswith("aiter") or TARGETS[target].vendor == "amd":
                    line = bits(operator, low.name, found, TARGETS[target])
                    lines[f"{operator}.{low.name} {line}"].append(target + "*" * graphs)
    return "".join(f"{line} {' '.join(names)}\n" for line, names in lines.items())


def quantified(operator: str, made: Sequence[object], graphs: bool) -> list[Quantities]:
    """graphs: with CUDA graphs, which a star marks in the record."""
    with surroundings(graphs):
        return [quantities(operator, call) for call in made]


def bits(operator: str, lowering: str, found: Sequence[Quantities], target: Target) -> str:
    pays = [decide(policy.RULES, operator, lowering, each, target).pays for each in found]
    return f"{len(found)}:{int('1' + ''.join('01'[p] for p in pays), 2):x}"


def test_the_verdicts_are_those_that_were_recorded() -> None:
    assert recorded().splitlines() == RECORDED.read_text().splitlines()


if __name__ == "__main__":
    RECORDED.write_text(recorded())
