"""Every norm that a model's eager run has is in the ledger, exactly once, for every model of the
zoo.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.rewriting import Rewritten, recording
from tests.without_codegen import codegen_if_asked
from tests.zoo import DEMO, cases, tensors_in
from tests.zoo.traced import compile_alone, exact, live, results, traced

NORMS = ("rms_norm", "layer_norm", "group_norm", "channel_norm")


class Enough(Exception):
    """The passes have run: no code needs to be generated."""


def ledgers_of(name: str, dtype: torch.dtype, options: dict[str, Any]) -> list[Ledger]:
    """The ledger of every graph that one call runs, as often as it runs it."""
    compiled: list[Ledger] = []

    def keep(ledger: Ledger) -> None:
        compiled.append(ledger)
        raise Enough

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        before = len(compiled)
        try:
            return rocm_diffusion(gm, inputs, options=options, listener=keep, caches=False)
        except Exception:
            if len(compiled) == before:
                raise
            return gm

    seen = traced(name, dtype)
    ledgers = []
    for each in seen.graphs:
        before = len(compiled)
        compile_alone(backend, *each)
        ledgers.append(compiled[before:])
    return [ledger for number in seen.executed for ledger in ledgers[number]]


def norms_in(ledgers: list[Ledger]) -> Counter[str]:
    total: Counter[str] = Counter()
    for ledger in ledgers:
        for entry in ledger.entries:
            total.update({name: count for name, count in entry.covers.items() if name in NORMS})
    return total


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", [c.name for c in cases()])
def test_every_norm_has_an_entry(name: str, dtype: torch.dtype) -> None:
    expected = Counter({n: count for n, count in live(name, dtype).items() if n in NORMS})
    for select in ("off", "always"):
        ledgers = ledgers_of(name, dtype, {"select": select})
        assert norms_in(ledgers) == expected, select
        refused = [
            e
            for g in ledgers
            for e in g.entries
            if e.outcome == "refused" and set(e.covers) & set(NORMS)
        ]
        assert not refused, [str(e) for e in refused]


@pytest.mark.parametrize("name", DEMO)
def test_outputs_stay_as_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sites rewritten: the root mean square error against float64 is at most 1.1 times the
    eager one's, the factor for what two orders of rounding differ by in so small a model.
    """
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)
    seen = Rewritten()
    options = {"select": "always", "idioms": "-conv3d,-conv2d"}
    with codegen_if_asked():
        (compiled,) = traced(name).compiled(
            functools.partial(recording, seen, options=options, caches=False)
        )
        with torch.no_grad():
            ours = tensors_in(compiled(*traced(name).values))
    assert any(e.outcome == "rewritten" for e in seen.sites)
    eager, true_ones = results(name), exact(name)
    for mine, theirs, true in zip(ours, eager, true_ones, strict=True):
        if mine.is_floating_point():
            assert _rms(mine, true) <= 1.1 * _rms(theirs, true)


def _rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())
