"""The rules and bounds as text and as JSON, for `rocm-passes rules` and for docs/rules.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rocm_passes.policy.bounds import Bound
from rocm_passes.policy.conditions import All, Check, One, shown
from rocm_passes.policy.rules import EVERY, Rule

RULE_HEAD = (
    "operator",
    "lowering",
    "where",
    "condition",
    "pays",
    "reason",
    "evidence",
    "command",
)
SHORT_HEAD = ("lowering", "where", "condition", "pays", "reason, evidence, command")
BOUND_HEAD = ("bound", "value", "what it decides", "evidence", "command")


def rule_row(rule: Rule) -> tuple[str, ...]:
    """A rule as text, one cell for each name in RULE_HEAD."""
    every = {EVERY: "others"}
    settled = "beyond doubt, not measured again" if rule.beyond_doubt else ""
    parts = (str(rule.evidence), rule.evidence.docs, settled)
    evidence = ", ".join(part for part in parts if part)
    return (
        every.get(rule.operator, rule.operator),
        every.get(rule.lowering, rule.lowering),
        rule.where,
        rule.condition_text(),
        "yes" if rule.pays else "no",
        rule.reason_text(),
        evidence,
        rule.command,
    )


def short_row(rule: Rule) -> tuple[str, ...]:
    """The same for a terminal, one cell for each name in SHORT_HEAD."""
    operator, lowering, where, condition, pays, reason, evidence, command = rule_row(rule)
    why = "\n".join(part for part in (reason, evidence, command) if part)
    return f"{operator}.{lowering}", where, condition, pays, why


def bound_row(bound: Bound) -> tuple[str, ...]:
    """A bound as text, one cell for each name in BOUND_HEAD."""
    value = int(bound.value) if float(bound.value).is_integer() else bound.value
    return bound.name, f"{shown(value)} {bound.unit}", bound.meaning, bound.evidence, bound.command


def as_dict(rule: Rule) -> dict[str, Any]:
    """A rule for JSON. A quantity of the condition has pairs of relation and bound."""
    condition = {
        name: [[t.relation, t.bound] for t in _each(test)] for name, test in rule.tests.items()
    }
    return {**asdict(rule), "condition": condition}


def _each(test: Check) -> Iterable[One]:
    return test.tests if isinstance(test, All) else (test,)
