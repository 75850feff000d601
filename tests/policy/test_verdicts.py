"""The verdicts of all rules over a grid of calls and targets are those that were recorded.

After a row was changed on purpose: `python -m tests.policy.test_verdicts` records anew, and the diff shows what moved.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from torch._inductor import config

from rocm_passes import policy, registry
from rocm_passes.rewrite.match import Idiom
from rocm_passes.target import Target
from tests.policy.calls import TARGETS, calls

RECORDED = Path(__file__).parent / "verdicts.txt"


def idioms() -> dict[str, Idiom]:
    """One idiom for each operator that rules are about."""
    return {idiom.rules: idiom for idiom in registry.IDIOMS}


def recorded() -> str:
    """For each lowering and target a bit a call, in hexadecimal; targets that agree share a line."""
    lines: dict[str, list[str]] = defaultdict(list)
    for operator, made in calls().items():
        for lowering in idioms()[operator].lowerings:
            for name, target in TARGETS.items():
                if lowering.name != "aiter" or target.vendor == "amd":
                    for graphs in (False, True):
                        found = bits(operator, lowering.name, made, target, graphs)
                        lines[f"{operator}.{lowering.name} {found}"].append(name + "*" * graphs)
    return "".join(f"{line} {' '.join(names)}\n" for line, names in lines.items())


def bits(operator: str, lowering: str, made: list[object], target: Target, graphs: bool) -> str:
    """graphs: with CUDA graphs, which a star marks."""
    with config.patch({"triton.cudagraphs": graphs}):
        pays = [policy.verdict(operator, lowering, call, target).pays for call in made]
    return f"{len(made)}:{int('1' + ''.join('01'[p] for p in pays), 2):x}"


def test_the_verdicts_are_those_that_were_recorded() -> None:
    assert recorded().splitlines() == RECORDED.read_text().splitlines()


if __name__ == "__main__":
    RECORDED.write_text(recorded())
