"""The table of rules: every row decides some call, and names what measured it."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rocm_passes import kernels, ops, policy, registry
from rocm_passes.policy import RULES, Evidence, Rule, layout
from rocm_passes.policy.conditions import All, Check, at_least, both, not_a_multiple_of
from rocm_passes.policy.quantities import quantities
from rocm_passes.policy.rules import EVERY, decide, deciding
from rocm_passes.target import Target
from tests.policy.calls import TARGETS, calls, meta, rms_norm, surroundings

ROOT = Path(__file__).parents[2]
H200, MI300, CPU = TARGETS["sm_90"], TARGETS["gfx942"], TARGETS["cpu"]

#: Those of the recorded verdicts, and one that only rows about known faults are for.
ASKED = (*TARGETS.values(), Target("amd", "gfx1151", "Radeon 8060S", "2.13", "3.6"))

Case = tuple[str, str, dict[str, Any], Target]


def name(rule: Rule) -> str:
    return f"{rule.operator}.{rule.lowering} {rule.where}: {rule.condition_text()}"


def lowerings() -> dict[str, list[str]]:
    """The lowerings of each operator."""
    found = {idiom.rules: [low.name for low in idiom.lowerings] for idiom in registry.IDIOMS}
    return {**found, layout.OPERATOR: [layout.LOWERING]}


@functools.cache
def cases() -> dict[int, Case]:
    """A call and a target for every rule that decides one, by the rule's place in the table."""
    found: dict[int, Case] = {}
    for case in _cases():
        found.setdefault(RULES.index(deciding(RULES, *case)), case)
    return found


def _cases() -> Iterator[Case]:
    every = dict(calls())
    for operator, names in [*lowerings().items(), ("another", ["reference", "kernel"])]:
        for graphs in (False, True):
            with surroundings(graphs):
                found = [dict(quantities(operator, call)) for call in every.get(operator, [])]
            distinct = list({str(each): each for each in found}.values())
            for known in distinct or [{"convolutional": True, "flydsl": True}, {}]:
                yield from ((operator, low, known, t) for low in names for t in ASKED)


@pytest.mark.parametrize("at", range(len(RULES)), ids=lambda at: name(RULES[at]))
def test_a_changed_row_changes_the_verdict(at: int) -> None:
    """So every row is in use: no row before it decides all of its calls."""
    assert at in cases(), "no call of the grid is decided by this row"
    case, rule = cases()[at], RULES[at]
    changed = [*RULES[:at], replace(rule, pays=not rule.pays), *RULES[at + 1 :]]
    assert decide(RULES, *case).pays is rule.pays
    assert decide(changed, *case).pays is not rule.pays


CONDITIONAL = [rule for rule in RULES if rule.condition]


def examples(test: Check) -> tuple[Any, Any]:
    """A value that the test accepts, and one that it does not."""
    if isinstance(test, All):
        return examples(test.tests[0])[0] + 1, test.tests[0].bound - 1
    bound = test.bound
    made = {
        ">=": lambda: (bound, bound - 1),
        "<": lambda: (bound - 1, bound),
        "=": lambda: (bound, not bound if isinstance(bound, bool) else "other"),
        "is one of": lambda: (bound[-1], "other"),
        "is not a multiple of": lambda: (bound + 1, bound),
    }
    return made[test.relation]()


@pytest.mark.parametrize("rule", CONDITIONAL, ids=name)
def test_a_condition_holds_where_all_of_its_tests_do(rule: Rule) -> None:
    accepted = {quantity: examples(test)[0] for quantity, test in rule.tests.items()}
    assert rule.unmet(accepted) == []
    for quantity, test in rule.tests.items():
        assert rule.unmet({**accepted, quantity: examples(test)[1]}) == [quantity]
        assert rule.unmet({**accepted, quantity: None}) == [quantity]


def test_several_tests_of_one_quantity() -> None:
    test = both(at_least(64), not_a_multiple_of(64))
    assert [test.holds(value) for value in (63, 64, 65, 96, 128, None)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_row_names_what_exists(rule: Rule) -> None:
    if rule.operator != EVERY:
        assert rule.lowering in lowerings()[rule.operator]
    assert rule.reason_text() and str(rule.evidence)
    assert not rule.evidence.docs or (ROOT / rule.evidence.docs).is_file()
    if rule.evidence.machine:
        assert rule.command.startswith("python -m ")
        assert importlib.util.find_spec(rule.command.split()[2]) is not None


def test_every_lowering_has_a_verdict_on_every_target_where_nothing_is_known() -> None:
    for operator, names in lowerings().items():
        for lowering in names:
            for target in TARGETS.values():
                nothing = dict.fromkeys(_placeholders(operator))
                nothing |= {"repetition": 1.0}
                assert decide(RULES, operator, lowering, nothing, target).reason


def _placeholders(operator: str) -> set[str]:
    rows = [rule for rule in RULES if rule.operator == operator]
    return {found for rule in rows for found in re.findall(r"\{(\w+)", rule.reason)} - {"unmet"}


def test_reasons_say_where_a_rule_comes_from() -> None:
    rule = Rule("op", "low", "any", {}, True, "it is fast", Evidence("H200"), "command")
    published = replace(rule, evidence=Evidence(published="someone"))
    said = [
        decide([each], "op", "low", {}, t).reason
        for each in (rule, published)
        for t in (H200, MI300)
    ]
    assert said == [
        "it is fast (measured on an H200)",
        "it is fast (rule from an H200, not measured on this machine)",
        "it is fast (published: someone; not measured on this machine)",
        "it is fast (published: someone; not measured on this machine)",
    ]


def test_no_rule_claims_a_measurement_on_amd() -> None:
    for rule in RULES:
        assert "measured on" not in rule.reason
        origin = rule.evidence.seen_from(MI300)
        assert origin == "" or "not measured on this machine" in origin


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("any", {"gfx942", "gfx950", "gfx1100", "gfx1201", "sm_90", "cpu"}),
        ("gpu", {"gfx942", "gfx950", "gfx1100", "gfx1201", "sm_90"}),
        ("cpu", {"cpu"}),
        ("amd", {"gfx942", "gfx950", "gfx1100", "gfx1201"}),
        ("nvidia", {"sm_90"}),
        ("gfx9", {"gfx942", "gfx950"}),
        ("gfx1100", {"gfx1100"}),
        ("sm_90", {"sm_90"}),
    ],
)
def test_where_a_rule_is_for(where: str, names: set[str]) -> None:
    rule = Rule("op", "low", where, {}, True, "")
    assert {label for label, target in TARGETS.items() if rule.applies_to(target)} == names


def test_an_unmet_test_is_said_with_the_call_s_own_number() -> None:
    call = calls()["layer_norm"][1]
    said = policy.verdict("layer_norm", "triton", call, H200)
    assert said == (
        False,
        "not measured to pay for such a call: columns = 1,023, required >= 1,024; "
        "elements = 1,048,575, required >= 4,194,304",
    )
    symbolic = policy.verdict("layer_norm", "triton", calls()["layer_norm"][-1], H200)
    assert symbolic == (
        False,
        "not measured to pay for such a call: elements unknown at compile time",
    )


def test_the_nearest_rule_is_of_the_call_s_own_kind() -> None:
    """A chain with a norm of the branch has too few rows; that it is no LayerNorm is not
    the point.
    """
    size = {"rows": 1024, "columns": 3840, "elements": 1024 * 3840}
    call = {**size, "kind": "rms", "branch_norm": True, "chained": True}
    reason = decide(RULES, "fused_norm", "triton", call, H200).reason
    assert "or faster: rows = 1,024, required >= 3,072 (measured on an H200)" in reason


def test_a_lowering_without_a_row_is_not_taken_by_rule() -> None:
    said = policy.verdict("rms_norm", "new", rms_norm(meta(8, 8)), H200)
    assert said == (False, "it has not been measured to pay on this machine")


def test_no_kernel_and_no_operator_decides_whether_it_pays() -> None:
    for package in (kernels, ops):
        for path in Path(package.__path__[0]).rglob("*.py"):
            assert not re.search(r"\bpays\b", path.read_text()), path


def test_without_a_rule_there_is_no_verdict() -> None:
    with pytest.raises(LookupError, match=r"no rule applies to op\.low on cpu"):
        decide([], "op", "low", {}, CPU)


def test_what_is_beyond_doubt_is_so_where_it_was_measured() -> None:
    """Elsewhere the user's machine is measured; what follows from the lowering holds everywhere."""
    measured = Rule("a", "b", "gpu", {}, True, "", Evidence("H200"), beyond_doubt=True)
    assert measured.settles(H200) and not measured.settles(MI300)
    built = replace(measured, evidence=Evidence(figures="by construction"))
    assert built.settles(H200) and built.settles(MI300)
    assert not replace(measured, beyond_doubt=False).settles(H200)
    for rule in RULES:
        if rule.beyond_doubt:
            assert rule.evidence.machine or rule.evidence.figures
