"""The Conv3d benchmark: how calls are written, what its verdict says, and its uncompiled half on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import conv3d
from benchmarks.conv3d_calls import CALLS

WHOLE = [text for texts in CALLS.values() for text in texts]


def test_a_call_is_read_from_words() -> None:
    found = conv3d.Call.of("384-768 3x1x1 2+1f 60x104")
    assert found == conv3d.Call(384, 768, (3, 1, 1), 2, 1, 60, 104)
    assert found.gib(torch.bfloat16) == 3 * 60 * 104 * (384 + 768) * 2 / 2**30


@pytest.mark.parametrize("text", ["384-768 3x1x1 2+1f", "384 3x1x1 2+1f 60x104", ""])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='is no call; one is written as "384-384 3x3x3'):
        conv3d.Call.of(text)


def test_every_listed_call_can_be_read_and_is_listed_once() -> None:
    assert len({conv3d.Call.of(text) for text in WHOLE}) == len(WHOLE)
    assert set(conv3d.SAMPLE) <= set(WHOLE)


def again(unbound: str | None, chosen: str | None = None, **ms: float) -> dict[str, Any]:
    row = {"call": f"call {unbound}", "chosen": chosen or unbound, "unbound": unbound}
    return {**row, "again": ms, "ms": {}, "bound_mib": 512}


def compiled(**ms: float) -> dict[str, Any]:
    return {"call": f"call {ms}", "ms": {k.replace("_", " ", 1): v for k, v in ms.items()}}


@pytest.mark.parametrize(
    ("row", "ratio"),
    [
        (again("taps", taps=2.0, direct=2.0), 1.0),
        (again("taps", taps=2.2, direct=2.0), 1.1),
        (again(None, taps=2.2, direct=2.0), None),
        (again("taps"), None),
        (compiled(auto_auto=3.0, taps_as_is=2.0, Inductor=4.0), 1.5),
        (compiled(taps_as_is=2.0), None),
        ({"call": "too small"}, None),
    ],
)
def test_the_chosen_one_is_held_against_the_best(row: dict[str, Any], ratio: float | None) -> None:
    assert conv3d.away(row) == (None if ratio is None else pytest.approx(ratio))


def test_the_verdict_names_the_worst() -> None:
    rows = [again("taps", taps=2.0, direct=3.0), again("direct", taps=2.0, direct=2.5), again(None)]
    assert conv3d.verdict(rows) == (
        "1 of 2 choices within 3% of the best; the worst, call direct, is 1.250 of it"
    )
    rows.append(again("taps", "direct", taps=2.0, direct=2.5))
    assert conv3d.verdict(rows).endswith("; the memory bound changes 1 choices: {'call taps': 1.25}")
    assert conv3d.verdict([]) == "no call has a choice to judge"


def test_a_row_says_what_the_memory_bound_costs() -> None:
    assert "[taps; within 512 MiB direct, 1.250 of that]" in conv3d.line(
        again("taps", "direct", taps=2.0, direct=2.5)
    )
    assert "[taps]" in conv3d.line(again("taps", taps=2.0, direct=2.5))


def test_the_table_has_every_lowering_of_each_call() -> None:
    measured = {"again": {"direct": 1.25, "taps": 1.0}, "mib": {"direct": 3, "taps": 40}, "chosen": "direct"}
    rows = [{"call": WHOLE[0], **measured}, {"call": WHOLE[-1], "chosen": None}]
    text = conv3d.table(rows)
    assert f"| {WHOLE[0]} | 1.25, 3 | 1, 40 |  |  |  | direct | 1.250 |" in text
    assert f"| {WHOLE[-1]} |  |  |  |  |  | by rule |  |" in text
    assert text.count("###") == 2


def test_choices_are_held_against_a_second_measurement(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.conv3d", "--device", "cpu", "--all", "--dtype", "float32", "--out",
         str(out), "--calls", "4-4 3x3x3 2+1f 8x8;32-32 3x3x3 2+1f 140x140"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = json.loads(out.read_text())
    assert "key" not in small
    assert large["key"].startswith("conv3d float32 x 1x32x2x140x140 + 1x32x1x140x140 w 32x32x3x3x3 pad 1x1")
    assert set(large["ms"]) == set(large["again"]) == {"taps", "direct", "unfold"}
    assert large["chosen"] in large["ms"]
    assert " of 1 choices within 3% of the best" in ran.stdout
