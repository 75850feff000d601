"""Every norm that a model's eager run has is in the ledger, exactly once, for every model of the
zoo.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests import suites
from tests.rewriting import Rewritten, recording
from tests.without_codegen import without_codegen
from tests.zoo import DEMO, cases, tensors_in
from tests.zoo.fast import chosen
from tests.zoo.traced import exact, ledgers, live, passed, results, traced

#: The fast suite takes two models through the whole backend: a denoiser and a decoder.
ALL_OR_TWO = [
    pytest.param(c.name, marks=[] if c.name in ("flux", "vae_ltx") else [pytest.mark.exhaustive])
    for c in cases()
]
NORMS = ("rms_norm", "layer_norm", "group_norm", "channel_norm")


def ledgers_of(name: str, dtype: torch.dtype, options: dict[str, Any]) -> list[Ledger]:
    """The ledger of every graph that one call runs, through the whole backend."""
    ledgers: list[Ledger] = []
    backend = functools.partial(
        rocm_diffusion, options=options, listener=ledgers.append, caches=False
    )
    with without_codegen():
        traced(name, dtype).compiled(backend)
    return [ledgers[number] for number in traced(name, dtype).executed]


def norms_in(ledgers: list[Ledger]) -> Counter[str]:
    total: Counter[str] = Counter()
    for ledger in ledgers:
        for entry in ledger.entries:
            total.update({name: count for name, count in entry.covers.items() if name in NORMS})
    return total


#: In float32 the fast suite traces one model, a small one.
DTYPES = [
    *(
        pytest.param(*each.values, torch.bfloat16, id=f"{each.values[0]}-bf16", marks=each.marks)
        for each in chosen(c.name for c in cases())
    ),
    *(
        pytest.param(
            c.name,
            torch.float32,
            id=f"{c.name}-fp32",
            marks=() if c.name == "text_t5" else pytest.mark.exhaustive,
        )
        for c in cases()
    ),
]


@pytest.mark.parametrize(("name", "dtype"), DTYPES)
def test_every_norm_has_an_entry(name: str, dtype: torch.dtype) -> None:
    _check(name, dtype, ledgers(name, dtype, select="always"))


@pytest.mark.parametrize("select", ["off", pytest.param("always", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ALL_OR_TWO)
def test_every_norm_has_an_entry_through_the_whole_backend(name: str, select: str) -> None:
    """With "off", nothing prepares the graph for a rewrite, so that the pass is given another."""
    _check(name, torch.bfloat16, ledgers_of(name, torch.bfloat16, {"select": select}))


def _check(name: str, dtype: torch.dtype, found: list[Ledger]) -> None:
    assert norms_in(found) == Counter({n: c for n, c in live(name, dtype).items() if n in NORMS})
    entries = [e for ledger in found for e in ledger.entries if set(e.covers) & set(NORMS)]
    assert not [str(e) for e in entries if e.outcome == "refused"]


@pytest.mark.parametrize("name", DEMO)
def test_outputs_stay_as_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sites rewritten: the root mean square error against float64 is at most 1.1 times the
    eager one's, the factor for what two orders of rounding differ by in so small a model.
    """
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)
    seen = rewritten(name, {"select": "always", "idioms": "-conv3d,-conv2d"})
    ours = tensors_in(seen.result)
    assert any(e.outcome == "rewritten" for e in seen.sites)
    eager, true_ones = results(name), exact(name)
    for mine, theirs, true in zip(ours, eager, true_ones, strict=True):
        if mine.is_floating_point():
            assert _rms(mine, true) <= 1.1 * _rms(theirs, true)


def rewritten(name: str, options: dict[str, Any]) -> Rewritten:
    if not suites.codegen():
        return passed(name, runs=True, **options)
    seen = Rewritten()
    backend = functools.partial(recording, seen, options=options, caches=False)
    (compiled,) = traced(name).compiled(backend)
    with torch.no_grad():
        seen.result = compiled(*traced(name).values)
    return seen


def _rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())
