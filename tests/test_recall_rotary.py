"""Every rotation of every real denoiser has an entry, is rewritten, and leaves no complex number
behind.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.rewriting import Rewritten, rewrite
from tests.zoo import Case, case, cases, tensors_in
from tests.zoo.fast import chosen
from tests.zoo.traced import built, exact, live, passed, results

ROTATING = [c for c in cases() if (c.expected or {}).get("rotary")]


@pytest.fixture(autouse=True)
def plain_torch_lowerings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators' references: the kernels have tests of their own."""
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)


def covered(seen: Rewritten, *outcomes: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for entry in seen.sites:
        if not outcomes or entry.outcome in outcomes:
            total.update(dict(entry.covers))
    return total


def complex_targets(seen: Rewritten) -> list[str]:
    """Calls that give a complex tensor, but for graphs that return one (tables in a graph of their
    own).
    """
    return [
        str(node.target)
        for graph in seen.after
        if not any(is_complex(o) for o in graph.output_node().all_input_nodes)
        for node in graph.nodes
        if node.op == "call_function" and is_complex(node)
    ]


def is_complex(node: torch.fx.Node) -> bool:
    found = node.meta.get("val")
    return isinstance(found, Tensor) and found.is_complex()


@pytest.mark.parametrize("name", chosen(c.name for c in ROTATING))
def test_every_rotation_is_rewritten(name: str) -> None:
    expected = live(name)["rotary"]
    seen = rewritten(case(name))
    assert covered(seen)["rotary"] == expected
    assert covered(seen, "rewritten")["rotary"] == expected, [str(e.reason) for e in seen.sites]
    assert not complex_targets(seen)
    _check(seen, name)


def rewritten(zoo: Case) -> Rewritten:
    options = {
        "select": "always",
        "idioms": "qk_norm_rotary,rotary_pair,rotary",
        "rewrite_numerics": "fast",
    }
    if zoo.one_graph:
        return passed(zoo.name, runs=True, **options)
    model = built(zoo.name)
    args, kwargs = zoo.inputs(model)
    return rewrite(
        zoo.function(model), *args, options=options, fullgraph=False, codegen=False, **kwargs
    )


def _check(seen: Rewritten, name: str) -> None:
    """The error against float64 stays that of the original, within a tenth and the output's
    rounding.
    """
    triples = zip(tensors_in(seen.result), results(name), exact(name), strict=True)
    for ours, before, truth in triples:
        error = (ours.double() - truth).square().mean().sqrt()
        allowed = (before.double() - truth).square().mean().sqrt()
        rounding = torch.finfo(before.dtype).eps * truth.abs().max()
        assert error <= 1.1 * allowed + rounding, (float(error), float(allowed))
