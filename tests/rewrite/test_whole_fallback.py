"""What raises beside Inductor's compile of one graph costs no compile: plain Inductor does it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import compile_fx

from rocm_passes import backend
from rocm_passes.graph_pass import GraphPass
from rocm_passes.passes import complex_to_real
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Ledger
from tests.rewrite.test_fallback import (
    OPTIONS,
    Inner,
    Normed,
    Users,
    X,
    compiled,
    has_ours,
    instead_of_inductor,
)

SAID = "LookupError: a fault of ours"
NOTE = f"the compile failed: {SAID}; nothing is rewritten"


def fail(*_: Any, **__: Any) -> Any:
    raise LookupError("a fault of ours")


def without_code(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., None]) -> Inner:
    """In place of Inductor's compile of one graph, plain Inductor's too."""
    inner = instead_of_inductor(monkeypatch, fails)
    plain = functools.partial(compile_fx.compile_fx, inner_compile=inner)
    monkeypatch.setattr(backend, "compile_fx", plain)
    return inner


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> Inner:
    return without_code(monkeypatch, lambda gm, **how: None)


class LayerNormed(nn.Module):
    """Its norm is kept whole for the search, and decomposed where nothing takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x)) + 1


PLACES = {
    "the machine's description": "rocm_passes.backend.Target.of_inputs",
    "the decomposition table": "rocm_passes.backend.decomposing.table_preserving",
    "the pass over a joint graph": "rocm_passes.backend.DecomposeForTraining.__call__",
    "what the pass begins with": "rocm_passes.graph_pass.GraphPass._work",
    "decomposing what was kept": "rocm_passes.fx.decompositions.decompose_preserved",
    "what the pass ends with": "rocm_passes.graph_pass.Dump.ledger",
    "what stands behind the compile": "rocm_passes.backend.library_search.searching",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_of_ours_costs_no_compile(
    place: str, inner: Inner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PLACES[place], fail)
    model, before = LayerNormed(), len(ledgers.history())
    with torch.no_grad():
        # The norm is looked for and not taken, so that the pass has it to decompose.
        torch.testing.assert_close(compiled(model, [], fuel=0)(X), model(X))
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert SAID in record.message and "please report it" in record.message
    assert inner.calls and not inner.calls[-1]
    if place != "the machine's description":
        (ledger,) = ledgers.history()[before:]
        assert ledger.notes == [NOTE]


def test_a_joint_graph_is_trained_by_plain_inductor(
    inner: Inner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend.decomposing, "decompose_preserved", fail)
    model, found = LayerNormed(), []
    result = compiled(model, found)(X)
    result.sum().backward()
    got = model.norm.weight.grad
    model.norm.weight.grad = None
    expected = model(X)
    expected.sum().backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(got, model.norm.weight.grad)
    (ledger,) = found
    assert NOTE in ledger.notes and ledgers.history()[-1] is ledger
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert SAID in record.message and "please report it" in record.message
    assert not any(map(bool, inner.calls))


def test_raising_is_an_option(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.decomposing, "decompose_preserved", fail)
    with pytest.raises(BackendCompilerFailed, match="a fault of ours"):
        compiled(LayerNormed(), [], on_compile_error="raise")(X)


def test_sites_and_changes_say_what_became_of_them(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault behind the passes, whose ledger was published by then."""
    monkeypatch.setattr(backend.library_search, "searching", fail)
    found: list[Ledger] = []
    model = nn.Sequential(Normed())
    with torch.no_grad():
        call = compiled(lambda x: model(torch.relu(x / 1.0)), found)
        torch.testing.assert_close(call(X), model(torch.relu(X)))
    (ledger,) = found
    reason = f"its graph did not compile with this backend: {SAID}"
    assert {(e.outcome, e.reason, e.error) for e in ledger.entries} == {("refused", reason, SAID)}
    assert {(c.verdict, c.reason) for c in ledger.changes} <= {("failed", reason)}
    assert ledger.notes == [NOTE]


def of_tables(x: Tensor, freqs: Tensor, index: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs[index][:, None]).flatten(-2)


def test_complex_tables_in_real_numbers_are_taken_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They stand in the graph that is compiled without rewrites. Plain Inductor has none."""

    def fails(gm: torch.fx.GraphModule, **how: Any) -> None:
        if has_ours(gm):
            raise LookupError("a fault of ours")

    inner, found = without_code(monkeypatch, fails), []
    args = (torch.randn(4, 2, 8), torch.randn(9, 4, dtype=torch.complex64), torch.arange(4))
    with torch.no_grad():
        torch.testing.assert_close(compiled(of_tables, found)(*args), of_tables(*args))
    assert inner.calls == [True, True, False]
    (ledger,) = found
    changes = [c for c in ledger.changes if c.step == complex_to_real.PASS_NAME]
    assert [c.verdict for c in changes] == ["failed"]
    assert ledger.notes == [NOTE]


def test_the_graphs_own_error_is_raised_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes from AOTAutograd: no graph has been passed over."""

    def traced(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise Users(f"attempt {len(calls)}")

    calls: list[int] = []
    monkeypatch.setattr(backend, "compile_fx", traced)
    found: list[Ledger] = []
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as raised:
        compiled(Normed(), found)(X)
    assert str(raised.value.inner_exception) == "attempt 2" and len(calls) == 2
    assert raised.value.inner_exception.__context__ is None
    assert not caplog.records and not found


def test_inductors_passes_before_autograd_meet_the_graph_as_it_was(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubles(graph: torch.fx.Graph) -> torch.fx.Graph:
        output = graph.output_node()
        (first, *rest) = output.args[0]  # type: ignore[misc]
        with graph.inserting_before(output):
            twice = graph.call_function(torch.mul, (first, 2))
        twice.meta.update(first.meta)
        output.args = ((twice, *rest),)
        return graph

    monkeypatch.setattr(backend.library_search, "searching", fail)
    model = Normed()
    with torch.no_grad():
        call = compiled(model, [], pre_grad_custom_pass=doubles)
        torch.testing.assert_close(call(X), 2 * model(X))


def test_sizes_that_depend_on_data(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The symbols of the trace that failed are none of the second one."""
    monkeypatch.setattr(backend.library_search, "searching", fail)
    model = Normed()

    def rows(x: Tensor) -> Tensor:
        return model(x[(x.sum(-1) > 0).nonzero()[:, 0]])

    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        call = compiled(rows, [])
        for x in (X, -X):
            torch.testing.assert_close(call(x), rows(x))


def test_symbolic_sizes(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.library_search, "searching", fail)
    model = Normed()
    with torch.no_grad():
        torch._dynamo.reset()
        how = functools.partial(backend.rocm_diffusion, options=OPTIONS, caches=False)
        call = torch.compile(model, backend=how, dynamic=True)
        for rows in (4, 7):
            torch.testing.assert_close(call(X[:1].repeat(rows, 1)), model(X[:1].repeat(rows, 1)))


def test_a_backward_graph_that_is_compiled_later_is_passed_over_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pass fails over it alone; what compiles it then leaves it as it is."""
    made = GraphPass._work
    count = [0]

    def work(self: GraphPass, graph: torch.fx.Graph) -> Any:
        count[0] += 1
        return fail() if count[0] == 2 else made(self, graph)

    without_code(monkeypatch, lambda gm, **how: None)
    monkeypatch.setattr(GraphPass, "_work", work)
    model = LayerNormed()
    compiled(model, [])(X).sum().backward()
    got = model.norm.weight.grad
    model.norm.weight.grad = None
    model(X).sum().backward()
    torch.testing.assert_close(got, model.norm.weight.grad)
    assert count == [2]
