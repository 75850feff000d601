"""What raises within the pass, or is wrong, costs its own site only, and is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from rocm_passes.idioms.norms import rms_norm
from rocm_passes.ops.operator import Lowering, Operator
from rocm_passes.rewrite.match import Context, Idiom, Match
from rocm_passes.target import Target, needs_import
from tests.rewriting import rewrite
from tests.small_graphs import D, Twice, TwoNorms, check_eager, install, verdicts, with_lowerings


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)


def test_a_lowering_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Lowering(
        "broken", requires=(needs_import("rocm_passes.no_such_kernel"),), run=lambda *a: 1 / 0
    )
    install(monkeypatch, with_lowerings(broken))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert [e.outcome for e in seen.sites] == ["refused", "refused"]
    assert (
        "broken: rocm_passes.no_such_kernel does not import: ModuleNotFoundError"
        in seen.sites[0].reason
    )
    check_eager(seen, model, x)


def test_a_requirement_that_raises_counts_as_unmet(monkeypatch: pytest.MonkeyPatch) -> None:
    def requirement(_: Target) -> str | None:
        raise OSError("no such device")

    install(monkeypatch, with_lowerings(Lowering("broken", requires=(requirement,))))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert "could not be checked: OSError: no such device" in seen.sites[0].reason
    check_eager(seen, model, x)


def test_a_decomposition_that_raises_leaves_the_graph_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(b: Any, call: Any) -> Any:
        b(torch.ops.aten.neg.default, call.x)
        raise RuntimeError("half way")

    install(monkeypatch, with_lowerings(Lowering("broken", write=write)))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert {e.outcome for e in seen.sites} == {"refused"}
    assert "broken: writing it failed: RuntimeError: half way" in seen.sites[0].reason
    assert verdicts(seen.sites[0]) == {"broken": "failed"}
    assert seen.targets("before") == seen.targets("after")
    check_eager(seen, model, x)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda b, call: b(torch.ops.aten.sum.dim_IntList, call.x, [0]),
            "where the graph has float32 [3, 32]",
        ),
        (
            lambda b, call: b(torch.ops.prims.convert_element_type.default, call.x, torch.float16),
            "it gives float16",
        ),
        (lambda b, call: [call.x, call.x], "2 results where the graph has 1"),
    ],
    ids=["shape", "dtype", "count"],
)
def test_a_lowering_with_a_wrong_result_is_refused(
    monkeypatch: pytest.MonkeyPatch, write: Any, said: str
) -> None:
    install(monkeypatch, with_lowerings(Lowering("wrong", write=write)))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert said in seen.sites[0].reason
    check_eager(seen, model, x)


def test_a_matcher_that_raises_costs_only_its_own_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(graph: fx.Graph, context: Context) -> Iterator[Match]:
        raise KeyError("val")
        yield

    install(monkeypatch, Idiom("buggy", find, ()), rms_norm.IDIOM)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    by_idiom = {e.idiom: e for e in seen.sites}
    assert "looking for it failed: KeyError" in by_idiom["buggy"].reason
    assert by_idiom["buggy"].error == "KeyError('val')"
    assert by_idiom["rms_norm"].error == ""
    assert by_idiom["rms_norm"].outcome == "rewritten"
    check_eager(seen, model, x)


def test_a_kernel_that_raises_at_run_time_is_said_once_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(call: Twice) -> Tensor:
        raise RuntimeError("no kernel image")

    twice = Operator(
        "test_twice", Twice, lambda call: call.x * 2, lambda call: torch.empty_like(call.x)
    )
    twice.register(Lowering("kernel", run=run))
    x = torch.ones(3)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR, "rocm_passes"):
        patch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: True)
        for _ in range(2):
            assert torch.equal(twice.overload(x, "kernel"), x * 2)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "test_twice: the kernel kernel failed" in said[0]


def test_a_reader_that_raises_costs_its_own_candidate_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rocm_passes.idioms.norms import rms

    original, calls = rms.with_bias, iter(range(9))

    def faulty(found: Any) -> Any:
        if next(calls) == 0:
            raise ZeroDivisionError("a planted fault")
        return original(found)

    monkeypatch.setattr(rms, "with_bias", faulty)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert sorted(e.outcome for e in seen.sites) == ["refused", "rewritten"]
    refused = next(e for e in seen.sites if e.outcome == "refused")
    assert "reading it failed: ZeroDivisionError: a planted fault" in refused.reason
    check_eager(seen, model, x)


@pytest.mark.parametrize("step", ["__init__", "keep_apart", "keep_strides"])
def test_a_graph_that_cannot_be_finished_is_left_as_it_was(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(f"rocm_passes.graph_pass.Promises.{step}", fail)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    check_eager(seen, model, x)
    assert not [t for t in seen.targets() if "rocm_passes" in str(t)]
    assert seen.ledgers[0].notes == [
        "the pass failed: LookupError: a fault of ours; nothing is rewritten"
    ]
    assert {(e.outcome, e.lowering) for e in seen.sites} <= {("refused", None)}
    assert len(seen.sites) == (0 if step == "__init__" else 2)
    for entry in seen.sites:
        assert "could not be finished" in entry.reason and "a fault of ours" in entry.error
