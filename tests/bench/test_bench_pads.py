"""The padding benchmark measures what it says: its sites are found, and every form gives the same
numbers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

import rocm_passes
from rocm_passes.bench.pads import FORMS, Case, Match, cases, compiled
from rocm_passes.report.ledger import clear_history
from tests.suites import everything
from tests.without_codegen import codegen_if_asked

EXPECTED = {"resnet": {"group_norm_pad": 1}, "upsampler": {"pad": 1}, "shortcut": {"pad": 1}}
#: Plain Inductor generates C++ whatever the test asks for: the fast suite has it of one kind.
PLAIN = "shortcut"


def small(case: Case) -> Case:
    return dataclasses.replace(case, shape=(1, 8, 3, 4, 5), out=4)


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_form(kind: str) -> None:
    case = small(next(c for c in cases() if c.kind == kind))
    torch.manual_seed(0)
    model, x = Match(case), torch.randn(case.shape)
    with torch.no_grad(), codegen_if_asked():
        expected = model(x)
        for form in FORMS:
            if form == "inductor" and kind != PLAIN and not everything():
                continue
            clear_history()
            torch.testing.assert_close(
                compiled(model, form, select="always", layout="channels_last")(x), expected
            )
            found = Counter(
                e.idiom
                for g in rocm_passes.history()
                for e in g.entries
                if e.outcome == "rewritten"
            )
            pads = {name: count for name, count in found.items() if "pad" in name}
            if form == "all":
                assert pads == EXPECTED[kind]
            elif form == "pad":
                assert pads == {"pad": 1}
            else:
                assert pads == {}


def test_the_padded_tensor_is_counted_whole() -> None:
    case = Case("upsampler", (1, 2, 3, 4, 5), 2, (2, 2, 2))
    assert case.padded == 2 * (5 + 2) * (8 + 2) * (10 + 2)
