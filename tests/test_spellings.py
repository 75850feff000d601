"""Every spelling of an idiom that a model of the zoo has is in the fast suite."""

from __future__ import annotations

import pytest
import torch

from tests.zoo import DEMO, cases
from tests.zoo.decoded import cogvideox
from tests.zoo.fast import DECODED, FAST, chosen, spelling, table
from tests.zoo.traced import ledgers


@pytest.mark.parametrize("name", chosen(c.name for c in cases()))
def test_the_table_names_a_model_s_spellings(name: str) -> None:
    found = ledgers(name, torch.bfloat16, select="always")
    spelled = {spelling(e) for ledger in found for e in ledger.entries}
    stated = {each for each, models in table().items() if name in models}
    assert spelled == stated, "tests/zoo/spellings.txt is out of date"


@pytest.mark.model(DECODED)
def test_the_decoder_that_is_compiled_alone_has_its_model_s_spellings() -> None:
    """All its norms stand behind cached frames, which not all of the whole model's do."""
    spelled = {spelling(e) for ledger in cogvideox().ledgers for e in ledger.entries}
    stated = {each for each, models in table().items() if DECODED in models}
    assert {each for each in stated if "front_frames" in each} <= spelled
    framed = {each.replace(" front_frames", "") for each in spelled}
    assert {each.replace(" front_frames", "") for each in stated} <= framed


def test_every_spelling_is_in_the_fast_suite() -> None:
    left_out = [each for each, models in table().items() if not models & {*FAST, DECODED}]
    assert left_out == []


def test_each_model_is_there_for_a_spelling_or_the_demo() -> None:
    """No model of the fast suite beyond the demo's is there for nothing."""
    traced = {*FAST, DECODED}
    needed = set().union(*(m & traced for m in table().values() if len(m & traced) == 1))
    assert {*FAST} - {*DEMO} <= needed


def test_the_table_names_models_of_the_zoo() -> None:
    assert set().union(*table().values()) <= {c.name for c in cases()}
