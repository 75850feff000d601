"""What the ledger keeps of a site's nodes, for drawing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from rocm_passes.report import drawing
from tests.rewriting import rewrite


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-6)


def labels(steps: list[dict[str, Any]]) -> list[str]:
    return [step["label"] for step in steps]


def test_a_site_has_its_nodes_before_and_after() -> None:
    x, w = torch.randn(3, 16), torch.randn(16)
    site = rewrite(rms_norm, x, w, options={"lowering": {"rms_norm": "reference"}}).only()
    before, after = site.drawing["before"], site.drawing["after"]
    assert labels(before)[0] == "x" and "rsqrt" in labels(before) and "weight" in labels(before)
    assert "add 1e-06" in labels(before), "a node's numbers are shown"
    assert before[0]["value"] == "float32[3, 16]"
    assert [s["kind"] for s in before].count("output") == 1
    assert labels(after) == ["x", "weight", "rocm_passes.rms_norm"]
    assert after[-1]["inputs"] == [0, 1]
    assert site.bytes == (3 * 16 * 2 + 16) * 4


def test_a_site_that_is_left_alone_has_no_after() -> None:
    site = rewrite(rms_norm, torch.randn(3, 16), torch.randn(16), options={"select": "off"}).only()
    assert site.outcome == "kept" and set(site.drawing) == {"before"}


def test_bytes_are_not_known_of_symbolic_sizes() -> None:
    site = rewrite(rms_norm, torch.randn(3, 16), torch.randn(16), dynamic=True).only()
    assert site.bytes is None
    assert any("s" in step["value"].partition("[")[2] for step in site.drawing["before"])


def test_a_step_reads_steps_in_front_of_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = [x]
    for _ in range(2 * drawing.MOST_STEPS):
        nodes.append(graph.call_function(torch.ops.aten.add.Tensor, (nodes[-1], nodes[0])))
    steps = drawing.of(nodes[1:], (nodes[-1],))
    assert len(steps) == drawing.MOST_STEPS
    assert all(i < at for at, step in enumerate(steps) for i in step["inputs"])


def test_what_cannot_be_drawn_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.ops.aten.add.Tensor, (1, 2))

    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no words")

    node.args = (Unprintable(), 2)  # type: ignore[assignment]
    assert drawing.of({node}, (node,)) == []
    assert "could not be drawn" in caplog.text
