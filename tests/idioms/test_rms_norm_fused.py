"""RMSNorm as the graphs of GPU builds have it: `aten._fused_rms_norm`, which a CPU build decomposes
while tracing.
"""

from __future__ import annotations

import operator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.idioms.norms import rms as norms
from rocm_passes.idioms.norms import rms_norm
from rocm_passes.ops.rms_norm import RmsNorm
from rocm_passes.options import Options
from rocm_passes.rewrite.match import Context, Match, Miss
from tests.idioms.norm_cases import BF16, F32, draw
from tests.idioms.rms_norm_spellings import D


def fused_graph(x_dtype: torch.dtype, eps: float | None) -> torch.fx.Graph:
    """The norm of x [4, D] with a weight, and nothing else."""
    aten, mode = torch.ops.aten, FakeTensorMode()
    graph = torch.fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"] = mode.from_tensor(draw(4, D, dtype=x_dtype))
    w.meta["val"] = mode.from_tensor(draw(D, dtype=x_dtype))
    both = graph.call_function(aten._fused_rms_norm.default, (x, [D], w, eps))
    with mode:
        both.meta["val"] = aten._fused_rms_norm.default(x.meta["val"], [D], w.meta["val"], eps)
    y = graph.call_function(operator.getitem, (both, 0))
    y.meta["val"] = both.meta["val"][0]
    graph.output((y,))
    return graph


@pytest.mark.parametrize(("eps", "expected"), [(1e-6, 1e-6), (None, torch.finfo(F32).eps)])
def test_the_fused_operator_of_gpu_builds(eps: float | None, expected: float) -> None:
    (found,) = rms_norm.find(fused_graph(BF16, eps), Context(Options()))
    assert isinstance(found, Match) and isinstance(found.call, RmsNorm)
    assert found.call.eps == expected
    assert found.call.round_to is None
    assert found.outputs[0].target is operator.getitem


def test_the_fused_operator_with_a_bias() -> None:
    graph = fused_graph(BF16, 1e-6)
    (y,) = graph.output_node().args[0]
    w = next(m for m in graph.nodes if m.name == "w")
    with graph.inserting_before(graph.output_node()):
        total = graph.call_function(torch.ops.aten.add.Tensor, (y, w))
    total.meta["val"] = y.meta["val"] + w.meta["val"]
    graph.output_node().args = ((total,),)
    (found,) = rms_norm.find(graph, Context(Options()))
    assert isinstance(found, Match) and isinstance(found.call, RmsNorm)
    assert (found.outputs, found.call.bias, found.call.round_product) == ((total,), w, BF16)
    assert {y, total} < found.nodes


def test_the_fused_operator_with_its_rsqrt_used() -> None:
    graph = fused_graph(BF16, 1e-6)
    both = next(n for n in graph.nodes if n.target is torch.ops.aten._fused_rms_norm.default)
    with graph.inserting_after(both):
        rstd = graph.call_function(operator.getitem, (both, 1))
    graph.output_node().args = ((*graph.output_node().args[0], rstd),)
    (found,) = rms_norm.find(graph, Context(Options()))
    assert isinstance(found, Miss)
    assert "rsqrt is used outside" in found.reason
    assert isinstance(norms.read_fused(both), str)
