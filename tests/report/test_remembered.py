"""A graph that comes from Inductor's caches has its ledger, also in a second process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.zygote import WITHOUT_COMPILER

PROGRAM = """
import json, sys, torch, rocm_passes
def f(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
g = torch.compile(f, backend="rocm_diffusion", options={"select": sys.argv[1]})
with torch.no_grad():
    g(torch.randn(int(sys.argv[2]), 16), torch.randn(16))
entries = lambda ledger: [(e.idiom, e.outcome, e.reason) for e in ledger.entries]
print(json.dumps([[ledger.from_cache, entries(ledger)] for ledger in rocm_passes.history()]))
"""


def run(folder: Path, select: str = "off", rows: int = 3) -> list[list[object]]:
    environment = {
        **os.environ,
        WITHOUT_COMPILER: "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
    }
    command = [sys.executable, "-c", PROGRAM, select, str(rows)]
    done = forked.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[list[object]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_a_second_process_has_the_ledger_of_the_first_unless_it_is_damaged(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert first[0][0] is False
    assert second[0][0] is True
    assert first[0][1] == second[0][1]
    assert first[0][1][0][0] == "rms_norm"  # type: ignore[index]
    (kept,) = (tmp_path / "rocm_passes").glob("*.json")
    kept.write_text("{")
    assert run(tmp_path) == []


@pytest.mark.exhaustive
def test_other_options_and_other_shapes_are_other_graphs(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, select="always")[0][0] is False
    assert run(tmp_path, rows=5)[0][0] is False
