"""docs/measured/aiter_sites.md: what stands there is what the command would write."""

from __future__ import annotations

from examples import aiter_sites
from examples.aiter_sites import PAGE, Said, reasons, rows
from rocm_passes import policy


def test_the_rows_of_one_workload_are_true() -> None:
    """The others take minutes: `python -m examples.aiter_sites` makes them anew."""
    workload = next(w for w in aiter_sites.WORKLOADS if w.name == "wan_block")
    found = rows(aiter_sites.said(workload))
    written = PAGE.read_text(encoding="utf-8").splitlines()
    assert found
    assert [f"| {' | '.join(row)} |" for row in found] == [
        line for line in written if line.startswith("| wan_block |")
    ]


def test_every_workload_stands_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {workload.name} | " in text for workload in aiter_sites.WORKLOADS)


SAID = [
    Said("m", "gfx942", "conv3d", "aiter_triton", "taken", ""),
    Said("m", "gfx942", "conv3d", "aiter_triton", "not_faster", "by call"),
    Said("m", "gfx950", "conv3d", "aiter_triton", "refused", "x takes 2.50 GiB, [1, 2]"),
    Said("m", "gfx950", "conv3d", "aiter_triton", "refused", "x takes 3.5 GiB, [3]"),
    Said("m", "gfx1100", "conv3d", "aiter_triton", "unavailable", "on gfx950, this is gfx1100"),
]


def test_verdicts_are_counted() -> None:
    assert rows(SAID) == [
        (
            *("m", "conv3d", "aiter_triton", "1 to 2", "taken 1, can take 1", "refused 2"),
            *("refused 1", "-"),
        )
    ]
    assert reasons(SAID) == [
        ("conv3d", "aiter_triton", "x takes N GiB, [N]", "gfx950", "2"),
        ("conv3d", "aiter_triton", "on gfx950, this is another", "gfx1100", "1"),
    ]


def test_a_rule_s_reason_is_no_refusal() -> None:
    (rule,) = (r for r in policy.RULES if r.operator == "layer_norm" and r.lowering == "aiter")
    assert aiter_sites._by_rule(rule.reason)
    assert not aiter_sites._by_rule("aiter has no modulation after the norm")
