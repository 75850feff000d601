"""Rules: does a lowering pay for a call on a target, where nothing was measured there?

A rule is data. Its condition is a table of tests of a call's quantities (`quantities.py`). Of the
rules for a lowering and a target the first decides whose condition holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rocm_passes.policy.conditions import Check, One, equals, shown
from rocm_passes.target import Target

#: Stands for every operator, or for every lowering.
EVERY = "*"
#: Of the machines that evidence names.
ARCHITECTURES = {"H100": "sm_90", "H200": "sm_90"}
#: Elsewhere sites are measured rather than chosen by rules.
MEASURED_ON = frozenset(ARCHITECTURES.values())


class Verdict(NamedTuple):
    """Does a lowering pay on this machine, and how do we know?"""

    pays: bool
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Where a rule comes from.

    machine: what this project measured it on. published: who else measured it. Without either, the
    rule follows from what the lowering computes, or nothing was measured: `figures` says which.
    figures: the numbers, and what they were compared with. docs: the page that has them.
    """

    machine: str = ""
    published: str = ""
    figures: str = ""
    docs: str = ""

    def seen_from(self, target: Target) -> str:
        """The origin of the rule in words for a user of the target, or ""."""
        if self.published:
            return f"published: {self.published}; not measured on this machine"
        if self.machine and target.vendor == "nvidia":
            return f"measured on an {self.machine}"
        return f"rule from an {self.machine}, not measured on this machine" if self.machine else ""

    def __str__(self) -> str:
        source = self.machine or (f"published: {self.published}" if self.published else "")
        return ": ".join(part for part in (source, self.figures) if part)


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    operator: an operator of `ops/` or EVERY. lowering: one of its lowerings or EVERY.
    where: "any", "cpu", "gpu", a vendor ("amd", "nvidia"), or the beginning of an architecture
    ("gfx94", "sm_90").
    condition: tests by quantity, all of which must hold; a bare value means equality. {}: always.
    reason: for the ledger. `{rows}` stands for that quantity of the call, `{unmet}` for the tests
    that the call fails of the nearest rule that pays. command: what measured the evidence.
    beyond_doubt: no measurement on the user's machine is needed.
    """

    operator: str
    lowering: str
    where: str
    condition: Mapping[str, Any]
    pays: bool
    reason: str
    evidence: Evidence = field(default_factory=Evidence)
    command: str = ""
    beyond_doubt: bool = False

    def settles(self, target: Target) -> bool:
        """Is nothing to be measured where this rule decides? Evidence of a machine holds for its
        architecture.
        """
        arch = ARCHITECTURES.get(self.evidence.machine, "")
        return self.beyond_doubt and arch in ("", target.arch)

    @property
    def tests(self) -> dict[str, Check]:
        return {k: v if isinstance(v, Check) else equals(v) for k, v in self.condition.items()}

    def applies_to(self, target: Target) -> bool:
        """Is the rule for this vendor or architecture?"""
        groups = {"any", target.vendor, "gpu" if target.is_gpu else "cpu"}
        return self.where in groups or (target.arch != "" and target.arch.startswith(self.where))

    def unmet(self, quantities: Mapping[str, Any]) -> list[str]:
        """The quantities whose tests do not hold."""
        return [name for name, test in self.tests.items() if not test.holds(quantities.get(name))]

    def condition_text(self) -> str:
        return " and ".join(required(*each) for each in self.tests.items()) or "any call"

    def reason_text(self) -> str:
        """The reason for a table. A placeholder reads as the name of its quantity, in brackets."""
        text = self.reason.replace(": {unmet}", "").replace("{unmet}", "")
        return re.sub(r"\{(\w+)[^}]*\}", lambda found: f"[{words(found[1])}]", text)


def deciding(
    rules: Iterable[Rule],
    operator: str,
    lowering: str,
    quantities: Mapping[str, Any],
    target: Target,
) -> Rule:
    """The first rule that applies. Raises LookupError where none does."""
    for rule in about(rules, operator, lowering, target):
        if not rule.unmet(quantities):
            return rule
    raise LookupError(f"no rule applies to {operator}.{lowering} on {target.label}")


def decide(
    rules: Sequence[Rule],
    operator: str,
    lowering: str,
    quantities: Mapping[str, Any],
    target: Target,
) -> Verdict:
    """The verdict of the first rule that applies. Raises LookupError where none does."""
    rule = deciding(rules, operator, lowering, quantities, target)
    unmet = _unmet_text(about(rules, operator, lowering, target), quantities)
    text = rule.reason.format(**quantities, unmet=unmet)
    origin = rule.evidence.seen_from(target)
    return Verdict(rule.pays, f"{text} ({origin})" if origin else text)


def about(rules: Iterable[Rule], operator: str, lowering: str, target: Target) -> list[Rule]:
    """The rules for a lowering on a target, in order."""
    return [
        rule
        for rule in rules
        if rule.operator in (operator, EVERY)
        and rule.lowering in (lowering, EVERY)
        and rule.applies_to(target)
    ]


def _unmet_text(rules: Iterable[Rule], quantities: Mapping[str, Any]) -> str:
    """Which tests a call fails of the rule that pays and whose condition is the nearest to it."""
    failed = [(rule, rule.unmet(quantities)) for rule in rules if rule.pays]
    if not failed:
        return ""
    rule, names = min(failed, key=lambda pair: _distance(*pair))
    return "; ".join(_missed(name, quantities.get(name), rule.tests[name]) for name in names)


def _distance(rule: Rule, unmet: Sequence[str]) -> tuple[int, int]:
    """A call of another kind is farther away than one of another size."""
    return sum(not rule.tests[name].is_size for name in unmet), len(unmet)


def _missed(name: str, value: Any, test: Check) -> str:
    if value is None:
        return f"{words(name)} unknown at compile time"
    if isinstance(value, bool):
        return words(name) if value else f"not {words(name)}"
    return f"{words(name)} = {shown(value)}, required {test}"


def required(name: str, test: Check) -> str:
    """The test of a quantity as text. A flag reads as its name, or as "not" and its name."""
    if isinstance(test, One) and isinstance(test.bound, bool):
        return words(name) if test.bound else f"not {words(name)}"
    return f"{words(name)} {test}"


def words(name: str) -> str:
    return name.replace("_", " ")
