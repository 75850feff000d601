"""The fixed part of the random programs: seeds that run in every suite, and that the checks can
fail.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from rocm_passes.ops.rms_norm import inverse_root
from tests.fuzz import bounds, mutants, videos
from tests.fuzz.check import ALWAYS, STRICT, Failure, check
from tests.fuzz.compare import other_bits
from tests.fuzz.draft import Draft, Unfit
from tests.fuzz.generate import program
from tests.fuzz.program import Program, Statement
from tests.fuzz.shrink import shrink
from tests.suites import everything

PROGRAMS, AT_ONCE = 225, 25
#: Of these the fast suite checks the first, and those that a planted fault needs.
FIRST = range(AT_ONCE)
#: Programs that failed once, beyond the first ones: a reader of strides behind a decomposed norm,
#: outputs that no longer shared memory, roundings that the program amplifies, a pad of ATen that
#: lies otherwise than it promises, strides of a branch that ATen gives otherwise than it says, two
#: chains of which one waits for the other through a node beside it.
MENDED = (266, 100135, 400161, 400326, 700160, 800588, 900174, 900533, 901477, 910357, 912384)
FUZZING = Path(__file__).parents[2] / "docs" / "fuzzing.md"


def catching() -> list[int]:
    """The seed that catches each planted fault (docs/fuzzing.md, by `make mutants`)."""
    rows = re.findall(r"^\| (.+) \| (?:at most )?(\d+) \|$", FUZZING.read_text(), re.MULTILINE)
    names = {mutant.name for mutant in mutants.MUTANTS}
    return sorted({int(programs) - 1 for name, programs in rows if name in names} - {*FIRST})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=[] if first in FIRST else [pytest.mark.exhaustive])
        for first in range(0, PROGRAMS, AT_ONCE)
    ],
)
def test_programs_are_right(first: int) -> None:
    rewritten: Counter[str] = Counter()
    failures = []
    for seed in range(first, first + AT_ONCE):
        outcome = check(program(seed))
        rewritten.update(outcome.rewritten)
        failures += [f"seed {seed}: {f.kind}, {f.setting}: {f.message}" for f in outcome.failures]
    assert not failures, "\n".join(failures)
    assert rewritten.total() > AT_ONCE


@pytest.mark.parametrize("seed", catching())
def test_a_program_that_catches_a_planted_fault_is_right(seed: int) -> None:
    assert check(program(seed)).failures == []


def test_every_planted_fault_has_its_program_in_the_fast_suite() -> None:
    rows = FUZZING.read_text().splitlines()
    missing = [
        mutant.name
        for mutant in mutants.MUTANTS
        if not any(re.fullmatch(rf"\| {re.escape(mutant.name)} \| .*\d+ \|", r) for r in rows)
    ]
    assert missing == [], "make mutants writes docs/fuzzing.md"


@pytest.mark.parametrize("seed", MENDED)
def test_programs_that_failed_once(seed: int) -> None:
    assert check(program(seed)).failures == []


def test_a_convolution_of_no_channels_is_not_written() -> None:
    draft = Draft(0)
    x = draft.tensor([1, 0, 4, 4])
    with pytest.raises(Unfit, match="no channels"):
        videos.convolution(draft, x)


def test_strict_allows_no_element_to_differ() -> None:
    """Not by one unit in the last place, nor by the sign of a zero."""
    found = functools.partial(Failure, setting=STRICT)
    x = torch.tensor([1.0, 0.0, 2.0])
    assert other_bits(found, [x], [x.clone()]) == []
    for other in (x.nextafter(torch.tensor(3.0)), torch.tensor([1.0, -0.0, 2.0])):
        (failure,) = other_bits(found, [other], [x])
        assert failure.kind == "strict"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_neighbour_is_one_rounding_away(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, -1.5, 0.0, 3.0]]).to(dtype).t().expand(4, 200)
    x = torch.cat([x.contiguous(), torch.zeros(4, 1, dtype=dtype)], 1)[:, :200]
    made = bounds.neighbour(x, torch.Generator().manual_seed(0))
    assert made.stride() == x.stride() and made.dtype == dtype
    away = (made.double() - x.double()).abs() / torch.finfo(dtype).eps
    assert away.amax(1).tolist() == [1.0, 1.0, 0.0, 2.0]
    assert (made == x).any(1).all() and (made != x).any(1).tolist() == [True, True, False, True]


def test_eager_may_err_at_neighbouring_inputs_only() -> None:
    """At 0.75 itself nothing is rounded."""

    def call(inputs: list[Tensor]) -> bounds.Given:
        return [(inputs[0] * 3 - 2.25) * 1e7], []

    x = torch.full((8,), 0.75)
    assert bounds.error(call([x])[0][0], call([x.double()])[0][0]) == 0.0
    (worst,), _ = bounds.errors_nearby(call, call, [x])
    assert 0.5 < worst < 0.7


def test_a_fault_exceeds_the_bound_of_a_program_that_amplifies_roundings() -> None:
    """A large one. Smaller ones are for programs that amplify less."""
    (dropped,) = [m for m in mutants.MUTANTS if m.name == "RMSNorm: weight dropped"]
    with dropped.plant():
        assert "value" in {f.kind for f in check(program(400161), [ALWAYS]).failures}


def test_a_norm_that_hides_nan_is_caught() -> None:
    """Its results are right wherever the inputs are finite."""
    hiding = mock.patch(
        "rocm_passes.ops.rms_norm.inverse_root", lambda *args: inverse_root(*args).nan_to_num()
    )
    kinds = set()
    for seed in range(8):  # NaN is the value of some of them.
        norm = Statement("v0", "F.rms_norm(x0, (8,), None, 1e-5)")
        made = Program(seed, (("x0", "torch.randn(3, 8)"),), (norm,), ("v0",))
        assert check(made, [ALWAYS]).failures == []
        with hiding:
            kinds |= {f.kind for f in check(made, [ALWAYS]).failures}
    assert kinds == {"finite"}


def test_a_seed_gives_one_program() -> None:
    assert program(3) == program(3)
    assert program(3) != program(4)


def test_a_failure_is_shrunk_to_what_it_needs() -> None:
    """A planted fault in a long program leaves the one statement that shows it."""
    made = Program(
        0,
        (("x0", "torch.randn(2, 5, 8)"), ("x1", "torch.randn(8)")),
        (
            Statement("v0", "torch.tanh(x0)"),
            Statement("v1", "F.rms_norm(v0, (8,), x1, 0.5)"),
            Statement("v2", "v1 * 2 + v0"),
        ),
        ("v2", "v0"),
    )
    (doubled,) = [m for m in mutants.MUTANTS if m.name == "RMSNorm: eps doubled"]
    assert not check(made).failures
    with doubled.plant():
        failure = check(made).failures[0]
        small, why = shrink(made, failure)
    assert why.kind == failure.kind == "value"
    assert [s.expression.split("(")[0] for s in small.statements] == ["F.rms_norm"]
    assert check(replace(small)).failures == []


def test_the_table_of_planted_faults_leaves_the_document_as_it_is() -> None:
    before = "\n".join(
        ["# Faults", "", *mutants.HEADER, "| old | 3 |", "| older | 4 |", "", "End."]
    )
    after = ["# Faults", "", *mutants.HEADER, "| new | 5 |", "", "End.", ""]
    assert mutants.with_table(before, ["| new | 5 |"]) == "\n".join(after)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_planted_faults_are_caught(mutant: mutants.Mutant) -> None:
    assert everything()
    assert mutants.caught_at(mutant) is not None
