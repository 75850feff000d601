"""What to do where nothing was measured on the user's machine: tables of rules and of bounds.

A rule is one row, in `norms.py`, `rotary.py`, `convolution.py`, `padding.py`, `attention.py`,
`activation.py` or `layout.py`. A bound is one in `bounds.py`. `rocm-passes rules` prints both, and
docs/rules.md lists them.
"""

from __future__ import annotations

from typing import Any

from rocm_passes.policy import activation, attention, convolution, layout, norms, padding, rotary
from rocm_passes.policy.bounds import BOUNDS, Bound
from rocm_passes.policy.quantities import quantities
from rocm_passes.policy.rules import (
    EVERY,
    MEASURED_ON,
    Evidence,
    Rule,
    Verdict,
    decide,
    deciding,
)
from rocm_passes.target import Target

__all__ = [
    "BOUNDS",
    "MEASURED_ON",
    "RULES",
    "Bound",
    "Evidence",
    "Rule",
    "Verdict",
    "settled",
    "verdict",
]

#: Of lowerings that have no row of their own. They may still be measured, or forced.
OTHERS = [
    Rule(
        EVERY,
        "reference",
        "any",
        {},
        False,
        "on a CPU, Inductor's fused code is faster than one operator in plain torch",
        Evidence(figures="not measured: it reads and writes memory at every step"),
        beyond_doubt=True,
    ),
    Rule(
        EVERY,
        EVERY,
        "any",
        {},
        False,
        "it has not been measured to pay on this machine",
        Evidence(figures="not measured"),
    ),
]

#: In order: the first rule that applies decides.
RULES: tuple[Rule, ...] = (
    *norms.RULES,
    *rotary.RULES,
    *convolution.RULES,
    *padding.RULES,
    *attention.RULES,
    *activation.RULES,
    *layout.RULES,
    *OTHERS,
)


def verdict(operator: str, lowering: str, call: Any, target: Target) -> Verdict:
    """Does the lowering of the operator pay for this call, of fake tensors, on the target?"""
    return decide(RULES, operator, lowering, quantities(operator, call), target)


def settled(operator: str, lowering: str, call: Any, target: Target) -> tuple[bool, bool]:
    """Does the lowering pay by the rule that decides, and is that rule beyond doubt here?"""
    rule = deciding(RULES, operator, lowering, quantities(operator, call), target)
    return rule.pays, rule.settles(target)
