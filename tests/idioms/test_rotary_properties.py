"""Any spelling, layout, dtype and size: within the accuracy bar of float64, through the
whole pass.
"""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.accuracy import assert_no_worse
from tests.idioms.rotary_spellings import DOUBLE, SPELLINGS, Spelling, example
from tests.kernels.rotary_reference import laid_out
from tests.rewriting import rewrite
from tests.suites import examples
from tests.without_codegen import without_codegen

LAYOUTS = ("contiguous", "head-major", "fused qkv")


@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    spelling=st.sampled_from(SPELLINGS + DOUBLE),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    layout=st.sampled_from(LAYOUTS),
    batch=st.integers(1, 3),
    tokens=st.integers(4, 9),
    heads=st.integers(1, 5),
    pairs=st.sampled_from([2, 3, 6, 8, 20]),
    numerics=st.sampled_from(["default", "fast"]),
    seed=st.integers(0, 1000),
)
def test_any_rotation(
    caplog: pytest.LogCaptureFixture,
    spelling: Spelling,
    dtype: torch.dtype,
    layout: str,
    batch: int,
    tokens: int,
    heads: int,
    pairs: int,
    numerics: str,
    seed: int,
) -> None:
    channels = 2 * pairs * (1 if spelling.width(4) == 4 else 2)
    case = example(spelling, batch, tokens, heads, channels, dtype, seed)
    x, *tables = case.args
    x = x if spelling.flat else laid_out(x, layout)
    caplog.clear()
    with without_codegen():
        seen = rewrite(
            spelling.rotate, x, *tables, options={"idioms": "rotary", "rewrite_numerics": numerics}
        )
    entry = seen.only()
    assert entry.outcome == "rewritten", entry.reason
    assert_no_worse(seen.result, case.original, case.exact)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
