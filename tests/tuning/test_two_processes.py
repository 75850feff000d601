"""The process after the one that measured compiles nothing; measuring something else changes
nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rocm_passes.tuning.consulted import INDUCTOR
from rocm_passes.tuning.store import Measured, load, update
from tests import forked

pytestmark = pytest.mark.codegen


def test_the_process_after_the_one_that_measured_compiles_nothing(tmp_path: Path) -> None:
    choices = tmp_path / "choices.json"

    def process(**times: float) -> Any:
        environment = {
            **forked.without_interpreter(),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        words = (str(choices), json.dumps({INDUCTOR: 1.0, **times}))
        done = forked.run(
            [sys.executable, "-m", "tests.tuning.measuring_process", *words], env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = process(reference=0.5)
    assert first["timed"] == [INDUCTOR, "reference"] and first["misses"] == 1
    assert not first["from_cache"] and first["lowering"] == "reference"
    assert first["reason"].startswith("measured on this machine: 0.5 ms against Inductor's own")

    second = process()
    assert second["misses"] == 0 and second["hits"] >= 1 and second["timed"] == []
    assert second["from_cache"] and second["lowering"] == "reference"

    ((machine, known),) = load(choices).items()
    (key,) = known
    other = Measured({INDUCTOR: 1.0, "reference": 2.0}, {INDUCTOR: 0, "reference": 0})
    update(choices, {machine: {"something else": other}, "gfx942 / torch 2.13.0": {key: other}})
    third = process()
    assert third["misses"] == 0 and third["from_cache"]

    # A slower time of the site's own: another choice, so other code.
    update(choices, {machine: {key: other}}, anew=True)
    fourth = process()
    assert fourth["misses"] == 1 and fourth["timed"] == [] and fourth["lowering"] is None
    fifth = process()
    assert fifth["misses"] == 0 and fifth["from_cache"] and fifth["lowering"] is None
