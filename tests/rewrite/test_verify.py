"""Ten planted wrong lowerings on real models: each is found, put back, and said."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from rocm_passes.graph_pass import GraphPass
from rocm_passes.ops.conv3d import CONV3D
from rocm_passes.ops.fused_norm import FUSED_NORM
from rocm_passes.ops.group_norm import GROUP_NORM
from rocm_passes.ops.operator import Operator
from rocm_passes.ops.qk_norm_rotary import QK_NORM_ROTARY
from rocm_passes.ops.rms_norm import RMS_NORM
from rocm_passes.options import Options
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite import verify
from rocm_passes.target import Target
from tests import forked
from tests.rewriting import copied, rewrite
from tests.zoo import case

#: Without Triton's interpreter each operator runs its reference, which the faults are planted in.
CPU = dataclasses.replace(Target.of_device("cpu"), interpreted=False)
#: Of the video decoder a few convolutions are enough.
OPTIONS: dict[str, dict[str, Any]] = {"vae_ltx": {"idioms": ("conv3d",), "fuel": 4}}


@functools.cache
def graph_of(name: str) -> fx.Graph:
    """A model's largest post-grad graph, in front of our pass."""
    zoo = case(name)
    model = zoo.build(torch.float32)
    if zoo.warm_up:
        zoo.run(model)
    args, kwargs = zoo.inputs(model)
    options = {"select": "off"}
    seen = rewrite(
        zoo.function(model),
        *args,
        options=options,
        fullgraph=zoo.one_graph,
        codegen=False,
        **kwargs,
    )
    return max(seen.before, key=lambda graph: len(graph.nodes))


def verified(graph: fx.Graph, **options: Any) -> tuple[Ledger, fx.Graph]:
    """The pass over a copy of the graph, with the option verify on."""
    graph = copied(graph)
    fx.GraphModule(torch.nn.Module(), graph)
    ledgers: list[Ledger] = []
    GraphPass(Options(**{"select": "always", "verify": "drawn", **options}), CPU, ledgers.append)(
        graph
    )
    graph.lint()
    return ledgers[0], graph


Call = Any
Reference = Callable[[Call], Any]
Wrong = Callable[[Reference, Call], Any]


def changed(**fields: Callable[[Call], Any]) -> Wrong:
    """The reference of another call: one field is wrong."""
    return lambda reference, call: reference(
        replace(call, **{name: change(call) for name, change in fields.items()})
    )


def made(change: Callable[[Tensor], Tensor]) -> Wrong:
    """The reference's result, changed."""
    return lambda reference, call: change(reference(call))


def in_place(reference: Reference, call: Call) -> Tensor:
    result: Tensor = call.x.copy_(reference(call))
    return result


def dense_the_other_way(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def flipped_taps(reference: Reference, call: Call) -> Any:
    return reference(replace(call, weight=call.weight.flip(2)))


FAULTS: dict[str, tuple[str, Operator[Any], Wrong, str]] = {
    "eps off": (
        "z_image",
        RMS_NORM,
        changed(eps=lambda c: 16 * c.eps),
        "its error against float64 is",
    ),
    "weight dropped": (
        "z_image",
        RMS_NORM,
        changed(weight=lambda c: None),
        "its error against float64 is",
    ),
    "gate twice": (
        "z_image",
        FUSED_NORM,
        changed(gate=lambda c: None if c.gate is None else c.gate * c.gate),
        "its error against float64 is",
    ),
    "sign of the rotation": (
        "z_image",
        QK_NORM_ROTARY,
        changed(conjugate=lambda c: not c.conjugate),
        "its error against float64 is",
    ),
    "wrong dtype": (
        "z_image",
        RMS_NORM,
        made(Tensor.bfloat16),
        "its dtype is torch.bfloat16, the graph has",
    ),
    "wrong strides": ("z_image", RMS_NORM, made(dense_the_other_way), "its strides are"),
    "aliasing": ("z_image", RMS_NORM, in_place, "it writes into its input"),
    "silu dropped": (
        "vae_image",
        GROUP_NORM,
        changed(silu=lambda c: False),
        "its error against float64 is",
    ),
    "wrong group count": (
        "vae_image",
        GROUP_NORM,
        changed(groups=lambda c: c.groups // 2),
        "its error against float64 is",
    ),
}


def put_back(ledger: Ledger) -> list[Entry]:
    return [e for e in ledger.entries if e.verification.get("status") == verify.WRONG]


def assert_put_back(ledger: Ledger, graph: fx.Graph, says: str) -> None:
    wrong = put_back(ledger)
    assert wrong
    for entry in wrong:
        assert entry.outcome == "refused" and entry.lowering is None
        assert entry.reason.startswith("put back by verify: ") and says in entry.reason
        assert "wrong" in {v.verdict for v in entry.verdicts}
        assert {"error", "original_error", "bound", "seconds"} <= entry.verification.keys()
    assert len(wrong) + sum(e.outcome == "rewritten" for e in ledger.entries) == len(ledger.entries)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_operator_is_found_on_a_real_model_and_put_back(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, operator, wrong, says = FAULTS[fault]
    right = operator.reference
    monkeypatch.setattr(operator, "reference", lambda call: wrong(right, call))
    ledger, graph = verified(graph_of(model))
    assert_put_back(ledger, graph, says)
    left = [n for n in graph.nodes if n.target in operator.overloads.values()]
    held = [e for e in ledger.entries if e.verification["status"] == verify.HELD]
    # What is not wrong by the fault (a site without the gate, without SiLU) stays.
    assert len(left) <= len(held)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == len(put_back(ledger))
    assert all("is wrong and was put back" in text for text in warnings)


def test_a_wrong_order_of_taps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(lowering: Any) -> Any:
        def write(b: Any, call: Any) -> Any:
            return lowering.write(
                b, replace(call, weight=b(torch.ops.aten.flip.default, call.weight, [2]))
            )

        return replace(lowering, write=write)

    right = list(CONV3D.lowerings)
    options = OPTIONS["vae_ltx"]
    CONV3D.lowerings[:] = map(wrong, right)
    try:
        ledger, _ = verified(graph_of("vae_ltx"), **options)
    finally:
        CONV3D.lowerings[:] = right
    three = [e for e in put_back(ledger) if "error against float64" in e.reason]
    assert three
    program = Path(three[0].verification["reproducer"])
    assert len(program.read_text().splitlines()) < 40
    done = forked.run([sys.executable, str(program)])
    assert done.returncode == 1, done.stderr
    assert "its error against float64 is" in done.stdout


@pytest.mark.parametrize("model", ["z_image", "vae_image", "vae_ltx"])
def test_what_is_right_stays_and_says_its_contract(model: str) -> None:
    ledger, _ = verified(graph_of(model), **OPTIONS.get(model, {}))
    found = [e for e in ledger.entries if e.outcome == "rewritten"]
    assert found
    for entry in found:
        assert entry.verification["status"] == verify.HELD, entry.verification
        assert entry.verification["contract"] in (verify.EXACT, verify.CLOSE)
    assert put_back(ledger) == []
