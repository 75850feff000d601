"""Every specialisation of the Triton kernels compiles for AMD: the interpreter runs only the side
of a branch that a call takes.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rocm_passes.kernels import triton as kernels
from tests import forked
from tests.kernels import faulty_kernels, specialisations
from tests.kernels.covering import Covering
from tests.kernels.structures import CALLS

#: What no lowering asks of the convolution yet; `tests/kernels/test_conv_isa.py` compiles these.
CONSTANT = {
    "conv_kernel": {"TIME_REPLICATE", "SPACE_REPLICATE", "SILU", "WIDEN"},
}


def run(*options: str) -> list[dict[str, Any]]:
    """In a process of its own: here the kernels are interpreted."""
    done = forked.run(
        [sys.executable, "-m", "tests.kernels.specialisations", *options],
        env=forked.without_interpreter(),
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run("--coarse", "--assembly")


def test_every_specialisation_compiles(found: list[dict[str, Any]]) -> None:
    assert [row for row in found if "failed" in row] == []


def test_every_operator_is_called(found: list[dict[str, Any]]) -> None:
    rows = {row["operator"]: row for row in found if "operator" in row}
    assert set(rows) == {o.name for o in specialisations.with_triton()} == set(CALLS)
    # What is refused has more programs than a grid; a call that is wrong would be no call.
    for row in rows.values():
        assert all(re.search("a grid (of|has)", reason) for reason in row["refused"]), row
        assert sum(row["refused"].values()) < row["calls"] / 3, row


def test_every_kernel_is_compiled(found: list[dict[str, Any]]) -> None:
    sources = [path.read_text() for path in Path(kernels.__path__[0]).rglob("*.py")]
    for row in (row for row in found if "specialisations" in row):
        assert row["specialisations"] >= 5, row
    written = {
        line.removeprefix("def ").split("(")[0]
        for source in sources
        for line in source.splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert {row["kernel"] for row in found if "specialisations" in row} == written


def test_every_flag_is_compiled_on_and_off(found: list[dict[str, Any]]) -> None:
    for row in (row for row in found if "specialisations" in row):
        of_one_value = {name for name, values in row["constexprs"].items() if len(values) == 1}
        assert of_one_value == CONSTANT.get(row["kernel"], set()), row["kernel"]


def test_what_does_not_compile_is_found() -> None:
    rows = {row["kernel"]: row["failed"] for row in run("--faulty") if "failed" in row}
    said = {
        "divides_by_nothing": "division by zero",
        "has_a_range_of_three": "power of 2",
        "casts_an_integer": "has no attribute 'to'",
        "asserts": "N is odd",
        "changes_its_type": "found",
    }
    assert set(rows) == set(said)
    for kernel, words in said.items():
        assert words in rows[kernel], rows[kernel]


def test_the_interpreter_runs_most_of_these() -> None:
    for launch in faulty_kernels.launches():
        if launch.kernel is not faulty_kernels.asserts:
            launch.run()


@pytest.mark.exhaustive
@pytest.mark.parametrize("operator", sorted(CALLS))
def test_all_pairs_of_choices_compile(operator: str) -> None:
    assert [row for row in run("--only", operator) if "failed" in row] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("operator", sorted(CALLS))
def test_all_threes_of_flags_compile(operator: str) -> None:
    rows = run("--only", operator, "--coarse", "--together", "3")
    assert [row for row in rows if "failed" in row] == []


@pytest.mark.parametrize("together", [2, 3])
def test_choices_meet(together: int) -> None:
    pick, met, cases = Covering(together, coarse=False), set(), 0
    names = {"a": range(3), "b": range(2), "c": range(4), "d": range(2)}
    while pick.begin():
        cases += 1
        case = {name: pick(name, *values) for name, values in names.items()}
        met |= set(combinations(case.items(), together))
    wanted = sum(
        len(names[a]) * len(names[b]) * (len(names[c[0]]) if c else 1)
        for a, b, *c in combinations(names, together)
    )
    assert len(met) == wanted and cases < 48


def test_coarse_choices_meet_as_absent_and_present() -> None:
    pick, met, cases = Covering(2, coarse=True), set(), 0
    while pick.begin():
        cases += 1
        case = pick("a", None, 1, 2, 3), pick("b", None, 1, 2, 3), pick("c", 1, 2, 3, 4, 5)
        met |= {(case[0] is None, case[1] is None), ("a", case[0]), ("c", case[2])}
    assert met == {(x, y) for x in (True, False) for y in (True, False)} | {
        *(("a", a) for a in (None, 1, 2, 3)), *(("c", c) for c in range(1, 6)),
    }  # fmt: skip
    assert cases < 16
