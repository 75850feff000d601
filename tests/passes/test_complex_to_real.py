"""Complex tables in real numbers: every rule bit for bit, what is left alone, and what a compiled
graph returns.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import lowering
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.passes import complex_to_real as real_tables
from rocm_passes.passes.complex_to_real import tables_in_real
from tests.rewriting import rewrite

aten = torch.ops.aten
C64, C128 = torch.complex64, torch.complex128
INDEX = torch.tensor([2, 0, 1, 2])


def table(dtype: torch.dtype = C64) -> Tensor:
    return torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))


def traced(fn: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    """Its functional graph with Inductor's decompositions; tensors that it closes over are
    attributes.
    """
    trace = make_fx(
        torch.func.functionalize(fn),
        decomposition_table=select_decomp_table(),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    with torch.no_grad():
        return trace(*args)


def complex_calls(graph: fx.Graph) -> list[Any]:
    return [
        node.target
        for node in graph.nodes
        if node.op == "call_function"
        and isinstance(v := node.meta.get("val"), Tensor)
        and v.is_complex()
    ]


def assigned(z: Tensor) -> Tensor:
    out = torch.zeros(2, 3, 4, dtype=z.dtype)
    out[1] = z
    return out


def assigned_slice(z: Tensor) -> Tensor:
    out = torch.ones(5, 4, dtype=z.dtype)
    out[1:4] = z
    return out


def assigned_broadcast(z: Tensor) -> Tensor:
    out = torch.zeros(2, 3, 4, dtype=z.dtype)
    out[:] = z
    return out


TABLES: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda z: z[INDEX],
    "index of two dims": lambda z: z[INDEX, torch.tensor([3, 1, 0, 0])],
    "index behind a slice": lambda z: z[:, INDEX],
    "index by a mask": lambda z: z[torch.tensor([True, False, True])],
    "index_select": lambda z: z.index_select(-1, INDEX),
    "gather": lambda z: z.gather(-2, torch.tensor([[2, 0, 1, 1]])),
    "slice": lambda z: z[1:, ::2].clone(),
    "select": lambda z: z.select(-1, 2).clone(),
    "unsqueeze": lambda z: z.unsqueeze(-2),
    "unsqueeze at the end": lambda z: z.unsqueeze(-1),
    "squeeze": lambda z: z.unsqueeze(0).squeeze(0),
    "view": lambda z: z.view(2, 6),
    "reshape of a transposed": lambda z: z.t().reshape(6, 2),
    "expand": lambda z: z[:, None].expand(3, 2, 4).clone(),
    "permute": lambda z: z[None].permute(-1, 0, 1).contiguous(),
    "transpose": lambda z: z.transpose(-1, -2).contiguous(),
    "cat": lambda z: torch.cat([z, z[:, :1]], dim=-1),
    "repeat": lambda z: z.repeat(2, 1, 3),
    "split": lambda z: torch.cat(z.split([1, 3], dim=-1)[::-1], dim=1),
    "unbind": lambda z: torch.cat(z.unbind(-1)),
    "zeros around": lambda z: torch.nn.functional.pad(z, (1, 2, 0, 1)),
    "assignment": assigned,
    "assignment of a slice": assigned_slice,
    "assignment of fewer dims": assigned_broadcast,
    "conjugate": lambda z: torch.conj(z)[INDEX],
    "wider": lambda z: z[INDEX].to(C128),
    "narrower": lambda z: z[INDEX].to(C64),
    "number": lambda z: torch.cat([z, torch.full((3, 1), 2.0 - 3.0j, dtype=z.dtype)], dim=-1),
    "parts": lambda z: torch.complex(torch.view_as_real(z)[..., 1], torch.view_as_real(z)[..., 0])[
        INDEX
    ],
}


@pytest.mark.parametrize("dtype", [C64, C128], ids=str)
@pytest.mark.parametrize("name", TABLES)
def test_every_rule_moves_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    z, fn = table(dtype), TABLES[name]
    expected = fn(z)
    gm = traced(fn, z)
    assert len(tables_in_real(gm.graph)) > 0
    gm.graph.lint()
    gm.recompile()
    assert complex_calls(gm.graph) == [aten.view_as_complex.default]
    found = gm(z)
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    assert torch.equal(found.resolve_conj(), expected.resolve_conj())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_polar(dtype: torch.dtype) -> None:
    angle = torch.rand(3, 4, dtype=dtype) * 100

    def fn(angle: Tensor) -> tuple[Tensor, Tensor]:
        return torch.polar(torch.ones_like(angle), angle)[INDEX], torch.polar(angle, angle)

    gm = traced(fn, angle)
    assert len(tables_in_real(gm.graph)) == 2
    gm.recompile()
    assert set(complex_calls(gm.graph)) == {aten.view_as_complex.default}
    for found, expected in zip(gm(angle), fn(angle.double()), strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(found.to(C128), expected, rtol=2 * eps, atol=2 * eps)


def rotation(x: Tensor, freqs: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs[INDEX][:, None]).flatten(-2)


def test_a_rotation_stays_for_the_idioms() -> None:
    x = torch.randn(4, 2, 8)
    gm = traced(rotation, x, table())
    assert len(tables_in_real(gm.graph)) == 1
    gm.recompile()
    assert complex_calls(gm.graph).count(aten.mul.Tensor) == 1
    assert set(complex_calls(gm.graph)) == {aten.mul.Tensor, aten.view_as_complex.default}
    assert torch.equal(gm(x, table()), rotation(x, table()))


def test_the_parts_of_a_table_are_real_from_the_start() -> None:
    gm = traced(lambda z: torch.view_as_real(z[INDEX]) * 2, table())
    assert len(tables_in_real(gm.graph)) == 1
    gm.recompile()
    assert not complex_calls(gm.graph)
    assert torch.equal(gm(table()), torch.view_as_real(table()[INDEX]) * 2)


def test_rows_that_several_layers_take_are_taken_once() -> None:
    def two_layers(x: Tensor, y: Tensor, z: Tensor, index: Tensor) -> list[Tensor]:
        return [torch.view_as_real(torch.view_as_complex(v) * z[index][:, None]) for v in (x, y)]

    gm = traced(two_layers, *torch.randn(2, 4, 2, 4, 2), table(), INDEX)
    assert len(tables_in_real(gm.graph)) == 2
    assert len(gm.graph.find_nodes(op="call_function", target=aten.index.Tensor)) == 1


LEFT: dict[str, Callable[[Tensor], Any]] = {
    "a product of tables": lambda z: (z * z)[INDEX],
    "a pad of ones": lambda z: torch.nn.functional.pad(z, (1, 0), value=1.0),
    "reals among complex numbers": lambda z: torch.zeros_like(z).copy_(
        torch.view_as_real(z)[..., 0]
    ),
    "a result of other strides": lambda z: z[INDEX].t().contiguous().t(),
    "an element of a tuple that no rule knows": lambda z: torch.linalg.svd(z)[0],
    "a real cast to complex": lambda z: torch.view_as_real(z)[..., 0].to(z.dtype),
    "nothing but inputs": lambda z: torch.view_as_real(z),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name: str) -> None:
    gm = traced(LEFT[name], table())
    before = str(gm.graph)
    assert len(tables_in_real(gm.graph)) == 0
    assert str(gm.graph) == before


def test_what_else_reads_a_table_gets_it_complex() -> None:
    gm = traced(lambda z: z[INDEX].abs(), table())
    assert len(tables_in_real(gm.graph)) == 1
    gm.recompile()
    assert torch.equal(gm(table()), table()[INDEX].abs())


def test_a_failing_rule_costs_no_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(b: Any, z: fx.Node) -> Any:
        b(aten.alias.default, z)
        raise RuntimeError("broken")

    monkeypatch.setitem(real_tables.RULES, aten.index.Tensor, fails)
    gm = traced(lambda z: z[INDEX], table())
    before = str(gm.graph)
    with caplog.at_level(logging.ERROR):
        assert len(tables_in_real(gm.graph)) == 0
    assert str(gm.graph) == before
    assert "in real numbers failed" in caplog.text


def tables_and_more(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two complex results, one computed from the other, and real work beside them."""
    rows = z[INDEX]
    y = torch.relu(x) @ x.t()
    return torch.cat([rows, rows], dim=-1), rows, (y * 2).sum(0)


def complains(options: dict[str, Any], grad: bool = False) -> bool:
    """Does Inductor warn of a graph that returns complex tables? What it returns is right in any
    case.
    """
    lowering._warn_complex_not_supported.cache_clear()
    z, x = table(), torch.randn(6, 6, requires_grad=grad)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        seen = rewrite(tables_and_more, z, x, options=options, grad=grad)
    lowering._warn_complex_not_supported.cache_clear()
    for ours, expected in zip(seen.result, tables_and_more(z, x), strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (
            expected.dtype,
            expected.shape,
            expected.stride(),
        )
        torch.testing.assert_close(ours, expected)
    return any("complex operators" in str(w.message) for w in found)


@pytest.mark.parametrize("select", ["always", "auto"])
def test_a_compiled_graph_that_returns_complex_tables_is_silent(select: str) -> None:
    assert not complains({"select": select})


@pytest.mark.parametrize(
    "options", [{"select": "off"}, {"fuel": 0}, {"idioms": "rms_norm"}], ids=str
)
def test_nothing_is_prepared_where_no_rotation_may_be_rewritten(options: dict[str, Any]) -> None:
    assert complains(options)


def test_symbolic_sizes_install_no_guard() -> None:
    z = torch.randn(7, 4, dtype=C64)
    torch._dynamo.mark_dynamic(z, 0)

    def fn(z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([z[1:], z[:1]]), z.repeat(2, 1)

    seen = rewrite(fn, z)
    assert {n.target for n in seen.after[0].output_node().all_input_nodes} == {
        aten.view_as_complex.default
    }
    sizes = [
        s
        for n in seen.after[0].find_nodes(op="placeholder")
        for s in getattr(n.meta["val"], "shape", ())
    ]
    assert any(isinstance(s, torch.SymInt) for s in sizes)
    for ours, expected in zip(seen.result, fn(z), strict=True):
        assert torch.equal(ours, expected)


def test_training_graphs_are_left() -> None:
    assert complains({}, grad=True)
