"""Every norm that a model's eager run has is in the ledger, exactly once, for every model of the
zoo.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.rewriting import Rewritten, _recording
from tests.without_codegen import codegen_if_asked
from tests.zoo import DEMO, Case, case, cases, tensors_in

NORMS = ("rms_norm", "layer_norm", "group_norm", "channel_norm")


class Enough(Exception):
    """The passes have run: no code needs to be generated."""


def ledgers_of(zoo: Case, model: torch.nn.Module, options: dict[str, Any]) -> list[Ledger]:
    """The ledger of every graph that one call runs, as often as it runs it; the graphs run in eager
    mode.
    """
    compiled: list[Ledger] = []
    executed: list[Ledger] = []

    def keep(ledger: Ledger) -> None:
        compiled.append(ledger)
        raise Enough

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        before = len(compiled)
        try:
            rocm_diffusion(gm, inputs, options=options, listener=keep, caches=False)
        except Exception:
            if len(compiled) == before:
                raise
        mine = compiled[before:]

        def run(*values: Any) -> Any:
            executed.extend(mine)
            return gm.forward(*values)

        return run

    args, kwargs = zoo.inputs(model)
    if zoo.warm_up:
        zoo.run(model)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(zoo.function(model), backend=backend)(*args, **kwargs)
    return executed


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
    zoo = case(name)
    model = zoo.build(dtype)
    expected = Counter({n: count for n, count in zoo.live(model).items() if n in NORMS})
    for select in ("off", "always"):
        ledgers = ledgers_of(zoo, model, {"select": select})
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
    zoo = case(name)
    model = zoo.build(torch.bfloat16)
    args, kwargs = zoo.inputs(model)
    eager, exact = zoo.run(model), zoo.reference(model)
    seen = Rewritten()
    torch._dynamo.reset()
    idioms = {"select": "always", "idioms": "-conv3d,-conv2d"}
    compiled = torch.compile(
        zoo.function(model),
        backend=lambda gm, i: _recording(seen, gm, i, options=idioms, caches=False),
    )
    with torch.no_grad(), codegen_if_asked():
        ours = tensors_in(compiled(*args, **kwargs))
    assert any(e.outcome == "rewritten" for e in seen.sites)
    for mine, theirs, true in zip(ours, eager, exact, strict=True):
        if mine.is_floating_point():
            assert _rms(mine, true) <= 1.1 * _rms(theirs, true)


def _rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())
