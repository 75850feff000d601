"""A graph that does not compile with its rewrites is compiled without them, and the ledger says
so.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, SkipFrame, UnspecializeRestartAnalysis
from torch._inductor import ir
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.lowering import lowerings
from torch._inductor.utils import run_and_get_code

import rocm_passes
from rocm_passes import backend
from rocm_passes.errors import OptionError
from rocm_passes.graph_pass import GraphPass
from rocm_passes.ops.rms_norm import RMS_NORM
from rocm_passes.options import Options
from rocm_passes.report import child_ledgers
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite import fallback, watch
from rocm_passes.target import Target
from rocm_passes.tuning import ranks
from tests.generated_code import difference, only_written
from tests.without_codegen import _post_grad_only

OPTIONS = {"select": "always", "on_compile_error": "fallback"}
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(x)) + 1


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    fallback._SAID.clear()
    yield
    fallback._SAID.clear()


def has_ours(gm: torch.fx.GraphModule) -> bool:
    graphs = [m.graph for m in gm.modules() if isinstance(m, torch.fx.GraphModule)]
    return any("rocm_passes" in str(n.target) for graph in graphs for n in graph.nodes)


class Inner:
    """In place of Inductor's compile of one graph: its post-grad passes, and then an error.

    fails: asked about the graph and how it is compiled; it raises, or does not.
    """

    def __init__(self, fails: Callable[..., None]) -> None:
        self._fails = fails
        self.calls: list[bool] = []
        self.caching: list[bool] = []

    def __call__(self, gm: torch.fx.GraphModule, inputs: Any, **how: Any) -> Any:
        how.pop("compile_region_name", None)
        made = _post_grad_only(gm, inputs, **how)
        self.calls.append(has_ours(gm))
        self.caching.append(bool(torch._inductor.config.fx_graph_cache))
        self._fails(gm, **how)
        return made


def fails_with_ours(gm: torch.fx.GraphModule, **how: Any) -> None:
    if has_ours(gm):
        raise RuntimeError("no such kernel\nand more of it")


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> Inner:
    return instead_of_inductor(monkeypatch, fails_with_ours)


def instead_of_inductor(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., None]) -> Inner:
    made = Inner(fails)
    for module in (backend, watch):
        monkeypatch.setattr(module, "compile_fx_inner", made)
    return made


def compiled(model: Callable[..., Any], found: list[Ledger], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    how = functools.partial(
        backend.rocm_diffusion, options=OPTIONS | options, listener=found.append, caches=False
    )
    return torch.compile(model, backend=how)


REASON = "its graph did not compile with the rewrites: RuntimeError: no such kernel"


def assert_refused(ledger: Ledger, reason: str = REASON) -> None:
    assert ledger.entries
    for entry in ledger.entries:
        assert (entry.outcome, entry.lowering, entry.reason) == ("refused", None, reason)
        assert entry.error == reason.split("rewrites: ")[1]
        assert "taken" not in {v.verdict for v in entry.verdicts}
        assert ("failed", reason) in {(v.verdict, v.reason) for v in entry.verdicts}
    assert f"the compile failed: {entry.error}; nothing is rewritten" in ledger.notes


def test_it_is_compiled_without(inner: Inner, caplog: pytest.LogCaptureFixture) -> None:
    model, found = Normed(), []
    with torch.no_grad():
        result = compiled(model, found)(X)
    torch.testing.assert_close(result, model(X))
    assert inner.calls == [True, False]
    (ledger,) = found
    assert_refused(ledger)
    assert ledgers.history() == [ledger]
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "graph" in record.message and "RuntimeError: no such kernel" in record.message
    assert "please report it" in record.message and "Traceback" in record.message


def test_the_same_error_is_said_once(inner: Inner, caplog: pytest.LogCaptureFixture) -> None:
    found: list[Ledger] = []
    with torch.no_grad():
        for _ in range(2):
            compiled(Normed(), found)(X)
    assert len(found) == 2
    for ledger in found:
        assert_refused(ledger)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_nothing_of_it_is_cached(inner: Inner) -> None:
    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(fx_graph_cache=True):
        torch.compile(Normed(), backend="rocm_diffusion", options=OPTIONS)(X)
    assert inner.caching == [True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "drawn"},
        {"verify": "live"},
        {"check_finite": 2},
        {"rewrite_numerics": "strict"},
        {"fuel": 1},
        {"fuel_total": 10**6},
    ],
)
def test_with_other_options(inner: Inner, options: dict[str, Any]) -> None:
    model, found = Normed(), []
    with torch.no_grad():
        call = compiled(model, found, **options)
        for _ in range(3):
            torch.testing.assert_close(call(X), model(X))
    (ledger,) = found
    if options.get("rewrite_numerics") == "strict" and inner.calls == [False]:
        return
    assert inner.calls == [True, False]
    assert_refused(ledger)


@pytest.mark.parametrize("error", [SkipFrame, UnspecializeRestartAnalysis, KeyboardInterrupt])
def test_what_is_no_failure_passes(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    passes = mock.Mock(attempt=None)

    def compile_one(gm: Any, inputs: Any, **how: Any) -> Any:
        calls.append(1)
        passes.attempt.changed = True
        raise error("")

    calls: list[int] = []
    gm = torch.fx.symbolic_trace(Normed())
    with pytest.raises(error):
        fallback.inner_compile(passes, compile_one)(gm, [])
    assert len(calls) == 1 and passes.attempt is None
    passes.undone.assert_not_called()


def test_a_wrong_option_is_raised() -> None:
    with pytest.raises(OptionError, match="on_compile_error"):
        backend.rocm_diffusion(
            torch.fx.symbolic_trace(Normed()), [X], options={"on_compile_error": "no"}
        )


class Users(RuntimeError):
    """An error of the graph's own."""


def test_the_users_own_error_is_the_one_that_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says that it was a fault of ours."""

    def fails(gm: torch.fx.GraphModule, **how: Any) -> None:
        raise Users(f"attempt {len(inner.calls)}")

    inner = instead_of_inductor(monkeypatch, fails)
    found: list[Ledger] = []
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as raised:
        compiled(Normed(), found)(X)
    assert inner.calls == [True, False]
    error = raised.value.inner_exception
    assert isinstance(error, Users) and str(error) == "attempt 2"
    assert error.__context__ is None
    assert not caplog.records and not found[0].notes


def test_a_graph_without_rewrites_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gm: torch.fx.GraphModule, **how: Any) -> None:
        raise Users("attempt")

    inner, found = instead_of_inductor(monkeypatch, fails), []
    with torch.no_grad(), pytest.raises(BackendCompilerFailed):
        compiled(torch.relu, found)(X)
    assert inner.calls == [False]
    assert all("compile failed" not in note for ledger in found for note in ledger.notes)


class NormedGradient(torch.autograd.Function):
    """The identity, with a norm in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        mean = gradient.square().mean(-1, keepdim=True)
        return gradient * torch.rsqrt(mean + 1e-6)


def test_a_backward_graph_that_is_compiled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls back alone, where autograd asks for it."""
    inner, found = instead_of_inductor(monkeypatch, fails_with_ours), []

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (NormedGradient.apply(x) ** 3).sum()

    x = X.clone().requires_grad_()
    result = compiled(loss, found)(x)
    assert inner.calls == [False]
    result.backward()
    assert inner.calls == [False, True, False]
    ours, x.grad = x.grad, None
    loss(x).backward()
    torch.testing.assert_close(ours, x.grad)
    forward, backward_graph = found
    assert not forward.entries and not forward.notes
    assert_refused(backward_graph)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cond(x.sum() > 0, lambda x: self.norm(x) * 2, lambda x: self.norm(x) + 1, (x,))
        return self.norm(y)


def test_the_graphs_of_branches_are_put_back(inner: Inner) -> None:
    model, found = Branches(), []
    with torch.no_grad():
        call = compiled(model, found)
        for x in (X, -X):
            torch.testing.assert_close(call(x), model(x))
    assert inner.calls[:2] == [True, False]
    assert any(ledger.entries for ledger in found)
    for ledger in found:
        assert {e.outcome for e in ledger.entries} <= {"refused"}


class Doubles(CustomGraphPass):
    """Not to be run twice: it doubles the graph's output."""

    def uuid(self) -> str:
        return "doubles"

    def __call__(self, graph: torch.fx.Graph) -> None:
        output = graph.output_node()
        (first, *rest) = output.args[0]  # type: ignore[misc]
        with graph.inserting_before(output):
            twice = graph.call_function(torch.ops.aten.mul.Tensor, (first, 2))
        twice.meta["val"] = first.meta["val"]
        output.args = ((twice, *rest),)


def test_a_users_pass_meets_the_graph_as_it_was(inner: Inner) -> None:
    model = Normed()
    with torch.no_grad():
        call = compiled(model, [], post_grad_custom_pre_pass=Doubles())
        torch.testing.assert_close(call(X), 2 * model(X))
    assert inner.calls == [True, False]


def test_the_report_and_children_say_the_same(inner: Inner, tmp_path: Path) -> None:
    report, folder = tmp_path / "ledger.json", tmp_path / "children"
    folder.mkdir()
    with (
        torch.no_grad(),
        # As of a child of another process.
        mock.patch.dict("os.environ", {child_ledgers.VARIABLE: f"0:{folder}"}),
    ):
        compiled(torch.relu, [])(X)
        compiled(Normed(), [], report=str(report))(X)
    sites = json.loads(report.read_text())["sites"]
    assert [site["reason"] for site in sites] == [REASON]
    of_relu, of_norm = child_ledgers.read(str(folder))
    assert not of_relu["sites"]
    assert [site["reason"] for site in of_norm["sites"]] == [REASON]
    assert child_ledgers.AMENDS not in of_norm


def test_a_rank_says_that_others_may_have_the_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GraphPass(Options(), Target.current())
    monkeypatch.setattr(ranks, "current", lambda: SimpleNamespace(rank=1))
    ledger = Ledger("graph0")
    made.undone(ledger, REASON, "RuntimeError: no such kernel")
    assert ledger.notes == [
        "the compile failed: RuntimeError: no such kernel; nothing is rewritten",
        "other ranks than this one (1) may have compiled this graph with its rewrites; its "
        "collectives are the same",
    ]


def test_explain_shows_one_ledger(inner: Inner) -> None:
    with torch.no_grad():
        found = rocm_passes.explain(Normed(), X, options=OPTIONS)
    (entry,) = found.sites
    assert len(found.ledgers) == 1 and entry.reason == REASON
    assert REASON in str(found)


def raises_in_lowering(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("no lowering for this")


class Uncompilable(ir.ExternKernelAlloc):
    def codegen(self, wrapper: Any) -> None:
        raise SyntaxError("its kernel does not compile")


def raises_in_code_generation(x: Any, *args: Any, **kwargs: Any) -> Any:
    memory = ir.ExternKernel.realize_input(x)
    layout = ir.FixedLayout(x.get_device(), x.get_dtype(), x.get_size())
    return ir.TensorBox.create(Uncompilable(layout, [memory]))


class Unloadable(ir.ExternKernelAlloc):
    """As a kernel for which the device has too little memory: its module raises when it is
    loaded.
    """

    def codegen(self, wrapper: Any) -> None:
        wrapper.header.writeline("raise MemoryError('out of resource: shared memory')")
        wrapper.writeline(f"{self.get_name()} = {self.inputs[0].get_name()}")


def raises_when_loaded(x: Any, *args: Any, **kwargs: Any) -> Any:
    memory = ir.ExternKernel.realize_input(x)
    layout = ir.FixedLayout(x.get_device(), x.get_dtype(), x.get_size())
    return ir.TensorBox.create(Unloadable(layout, [memory]))


def test_raising_is_an_option() -> None:
    call, failing = compiled(Normed(), [], on_compile_error="raise"), raises_in_lowering
    raises = pytest.raises(BackendCompilerFailed, match="no lowering for this")
    with torch.no_grad(), mock.patch.dict(lowerings, {RMS_NORM.overload: failing}), raises:
        call(X)


@pytest.mark.parametrize(
    ("lowering", "said"),
    [
        (raises_in_lowering, "LoweringException: NotImplementedError: no lowering for this"),
        (raises_in_code_generation, "SyntaxError: its kernel does not compile"),
        (raises_when_loaded, "MemoryError: out of resource: shared memory"),
    ],
)
def test_inductor_fails_and_then_writes_what_it_would_have(
    lowering: Callable[..., Any], said: str
) -> None:
    """The code is that of a compile that changes nothing."""
    model, found = Normed(), []
    with torch.no_grad(), only_written():
        plain = run_and_get_code(compiled(model, [], select="off"), X)[1]
        with mock.patch.dict(lowerings, {RMS_NORM.overload: lowering}):
            ours = run_and_get_code(compiled(model, found), X)[1]
    assert not difference(ours[-1:], plain)
    assert_refused(found[0], f"its graph did not compile with the rewrites: {said}")
