"""Rotations: every spelling found, computed within the accuracy bar, and without complex
numbers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.accuracy import assert_no_worse
from tests.idioms.rotary_spellings import DOUBLE, SPELLINGS, Spelling, example
from tests.rewriting import ON_CPU, Rewritten, rewrite
from tests.without_codegen import without_codegen

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
OURS = torch.ops.rocm_passes


@pytest.fixture(autouse=True)
def no_kernel_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A kernel that fails falls back to plain torch and logs it: no test of a kernel may pass that
    way.
    """
    yield
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]


def complex_nodes(seen: Rewritten) -> list[str]:
    return [
        str(n)
        for g in seen.after
        for n in g.nodes
        if n.op == "call_function"
        and isinstance(n.meta.get("val"), Tensor)
        and n.meta["val"].is_complex()
    ]


def run(spelling: Spelling, *args: Tensor, options: dict[str, object] | None = None) -> Rewritten:
    with without_codegen():
        return rewrite(spelling.rotate, *args, options={"idioms": "rotary", **(options or {})})


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.name)
def test_every_spelling(spelling: Spelling, dtype: torch.dtype) -> None:
    given = example(spelling, 2, 7, 3, 16, dtype)
    seen = run(spelling, *given.args)
    entry = seen.only()
    # A complex table has a lowering of its own before the reference.
    real = ON_CPU == "reference" and any(t.is_complex() for t in given.args)
    lowering = "real" if real else ON_CPU
    assert (entry.outcome, entry.lowering, dict(entry.covers)) == (
        "rewritten",
        lowering,
        {"rotary": 1},
    )
    assert entry.parameters["pairs"] == ("interleaved" if spelling.interleaved else "half-split")
    assert (OURS.rotary.default in seen.targets()) is not real
    assert not complex_nodes(seen)
    assert_no_worse(seen.result, given.original, given.exact)


@pytest.mark.parametrize("spelling", DOUBLE, ids=lambda s: s.name)
def test_complex128_stays_float64(spelling: Spelling) -> None:
    given = example(spelling, 2, 7, 3, 16, F32)
    seen = run(spelling, *given.args)
    assert (seen.only().outcome, seen.only().lowering) == ("rewritten", "real")
    assert not complex_nodes(seen)
    assert torch.equal(seen.result, given.original)


@pytest.mark.parametrize("spelling", DOUBLE, ids=lambda s: s.name)
def test_complex128_in_float32_where_asked(spelling: Spelling) -> None:
    given = example(spelling, 1, 5, 3, 16, BF16)
    seen = run(spelling, *given.args, options={"rewrite_numerics": "fast"})
    assert seen.only().outcome == "rewritten"
    assert_no_worse(seen.result, given.original, given.exact)


def test_complex_numbers_go_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """select="auto" on a CPU: real arithmetic, which Inductor compiles without a warning."""
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    spelling = next(s for s in SPELLINGS if s.name == "p3")
    given = example(spelling, 2, 7, 3, 16, BF16)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*complex operators.*")
        seen = rewrite(spelling.rotate, *given.args, options={"select": "auto"})
    assert [e.lowering for e in seen.sites if e.idiom == "rotary"] == ["real"]
    assert not complex_nodes(seen)
    assert_no_worse(seen.result, given.original, given.exact)
