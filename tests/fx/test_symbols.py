"""Symbolic sizes as nodes, made without fx.Graph.materialize_symints (torch 2.11 has none)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx.symbols import sizes_as_nodes
from tests.accuracy import assert_no_worse
from tests.idioms.rotary_spellings import example, p1
from tests.idioms.test_rotary_pair import PAIRED, run

aten = torch.ops.aten


def traced(fn: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    return make_fx(fn, tracing_mode="symbolic")(*args)


def computed(gm: fx.GraphModule, sizes: list[Any], *args: Tensor) -> list[Any]:
    """The values of the sizes when the graph is run as Python on other inputs."""
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        found = sizes_as_nodes(gm.graph, sizes)
    output.args = (tuple(found),)
    gm.graph.lint()
    gm.recompile()
    assert all("val" in n.meta for n in gm.graph.nodes if n.op == "call_function")
    return list(gm(*args))


def values(gm: fx.GraphModule) -> list[Any]:
    return [n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder"]


def test_a_size_of_an_input() -> None:
    gm = traced(lambda x: x * 2, torch.randn(5, 7))
    rows, columns = values(gm)[0].shape
    assert computed(gm, [columns, rows], torch.randn(3, 11)) == [11, 3]


def test_an_expression_of_sizes() -> None:
    gm = traced(lambda x, y: (x * 2, y * 2), torch.randn(6, 8), torch.randn(5))
    (rows, columns), (length,) = (v.shape for v in values(gm))
    wanted = [rows * columns + length, columns // 2, (rows * columns) // (2 * length)]
    x, y = torch.randn(4, 10), torch.randn(3)
    assert computed(gm, wanted, x, y) == [4 * 10 + 3, 5, 40 // 6]


def test_an_input_that_is_the_size_is_taken_first() -> None:
    gm = traced(lambda x: x * 2, torch.randn(5, 7))
    x = next(iter(gm.graph.nodes))
    with gm.graph.inserting_after(x):
        size = gm.graph.placeholder("size")
    size.meta["val"] = x.meta["val"].shape[1]
    (found,) = sizes_as_nodes(gm.graph, [x.meta["val"].shape[1]])
    assert found is size


def test_a_size_that_is_computed_late_is_used_early() -> None:
    """One node for all that ask, before all that is computed."""
    gm = traced(lambda x: torch.relu(x).reshape(x.shape[0] * x.shape[1]), torch.randn(5, 7))
    rows = values(gm)[0].shape[0]
    relu = next(iter(gm.graph.find_nodes(op="call_function", target=aten.relu.default)))
    gm.graph.output_node().prepend(
        next(iter(gm.graph.find_nodes(op="call_function", target=aten.sym_size.int)))
    )
    with gm.graph.inserting_before(relu):
        first, second = sizes_as_nodes(gm.graph, [rows, rows])
    assert first is second and isinstance(first, fx.Node) and first < relu


def unbacked_rows() -> tuple[fx.GraphModule, Any]:
    gm = traced(lambda x: x.nonzero().sum(), torch.tensor([1, 0, 2]))
    found = next(n for n in gm.graph.nodes if n.target is aten.nonzero.default)
    return gm, found.meta["val"].shape[0]


def test_an_unbacked_size_is_that_of_the_first_node_that_has_it() -> None:
    gm, many = unbacked_rows()
    assert computed(gm, [many, many * 2], torch.tensor([1, 0, 2, 3])) == [3, 6]


def test_a_symbol_that_no_node_tells_stays_as_it_is() -> None:
    _, many = unbacked_rows()
    gm = traced(lambda x: x * 2, torch.randn(5, 7))
    before = len(gm.graph.nodes)
    (found,) = sizes_as_nodes(gm.graph, [many])
    assert found is many
    assert len(gm.graph.nodes) == before


def test_a_rewrite_without_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(fx.Graph, "materialize_symints"):
        monkeypatch.delattr(fx.Graph, "materialize_symints")
    given = example(PAIRED[0], 1, 5, 2, 16, torch.float32)
    torch._dynamo.mark_dynamic(given.args[0], 1)
    for table in given.args[1:]:
        torch._dynamo.mark_dynamic(table, 0)
    seen = run(p1, *given.args)
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    leaves = [
        a for n in seen.after[0].nodes for a in torch.utils._pytree.tree_leaves((n.args, n.kwargs))
    ]
    assert not [a for a in leaves if isinstance(a, torch.SymInt)]
    assert_no_worse(seen.result, given.original, given.exact)
