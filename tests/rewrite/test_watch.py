"""The first calls, watched: `verify="live"` and `check_finite`, on the values that a site really
gets.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rocm_passes
from rocm_passes.ops.rms_norm import RMS_NORM
from rocm_passes.rewrite import watch
from tests.without_codegen import _post_grad_only


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (16,)) + 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles `norm` without generating code; its RMSNorm is wrong where an element is larger than
    100.
    """
    monkeypatch.setattr(watch, "compile_fx_inner", _post_grad_only)
    right = RMS_NORM.reference

    def wrong(call: Any) -> Tensor:
        return right(call) / (call.x.abs().max() <= 100)

    monkeypatch.setattr(RMS_NORM, "reference", wrong)

    def compile_with(**options: Any) -> Any:
        torch._dynamo.reset()
        given = {"select": "always", "lowering": "rms_norm=reference", **options}
        return torch.compile(norm, backend="rocm_diffusion", options=given)

    return compile_with


SMALL, LARGE = torch.randn(4, 16), 1000 * torch.randn(4, 16)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"check_finite": True}, "it turns non-finite where the original is finite"),
        ({"verify": "live"}, "it is not finite where the original is"),
    ],
    ids=str,
)
def test_a_site_that_is_wrong_on_the_first_call_s_inputs_is_named_and_the_graph_falls_back(
    options: dict[str, Any], says: str, compiled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    call = compiled(**options)
    with torch.no_grad():
        for x in (LARGE, SMALL, LARGE):
            torch.testing.assert_close(call(x), norm(x))
    (ledger,) = rocm_passes.history()
    (entry,) = ledger.entries
    assert entry.verification["status"] == "put back" and entry.verification["inputs"] == "live"
    assert says in entry.verification["reason"]
    assert says in ledger.notes[-1] and "runs without rewrites" in ledger.notes[-1]
    assert any("rms_norm at" in r.getMessage() and says in r.getMessage() for r in caplog.records)


def test_so_many_calls_are_watched_and_no_more(compiled: Any) -> None:
    call = compiled(check_finite=2)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(call(SMALL), norm(SMALL))
        assert not call(LARGE).isfinite().any()
    (ledger,) = rocm_passes.history()
    assert ledger.notes == []


def test_live_inputs_that_a_site_holds_on_are_in_the_ledger(compiled: Any) -> None:
    with torch.no_grad():
        compiled(verify="live")(SMALL)
    (entry,) = rocm_passes.history()[0].entries
    assert entry.verification["status"] == "held" and entry.verification["inputs"] == "live"
    assert entry.verification["drawn"]["status"] == "held"


def test_a_graph_that_cannot_be_watched_runs_and_says_so(
    compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator in eager")

    monkeypatch.setattr(watch._Observed, "run_node", fails)
    with torch.no_grad():
        torch.testing.assert_close(compiled(check_finite=True)(SMALL), norm(SMALL))
    (ledger,) = rocm_passes.history()
    assert "cannot be watched: RuntimeError: no such operator in eager" in ledger.notes[0]
