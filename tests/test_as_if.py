"""The option as_if: what the default would choose on a machine that is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rocm_passes
from rocm_passes import OptionError
from rocm_passes.options import parse
from rocm_passes.target import Target
from rocm_passes.tuning import ahead, tuning
from rocm_passes.tuning.store import Measured, store


def model(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.conv3d(x, w, stride=2) * 2


ARGUMENTS = (torch.randn(1, 4, 2, 8, 8), torch.randn(8, 4, 2, 2, 2))


@pytest.mark.parametrize(("arch", "lowering"), [("gfx942", "matmul"), ("sm_90", "matmul")])
def test_it_decides_as_there_and_runs_in_eager(arch: str, lowering: str) -> None:
    with torch.no_grad():
        explanation = rocm_passes.explain(model, *ARGUMENTS, options={"as_if": arch})
    (site,) = explanation.sites
    assert site.outcome == "rewritten" and site.lowering == lowering, str(site)
    assert "select" not in site.reason
    (graph,) = explanation.ledgers
    assert graph.notes == [f"decided as on {arch}; no code was generated"]
    # What runs is the model itself, to the bit: rewritten nodes of another device could not run.
    torch.testing.assert_close(explanation.result, model(*ARGUMENTS), rtol=0, atol=0)
    assert graph.notes[0] in explanation.to_html()


@pytest.mark.parametrize("arch", ["MI300X", "gfx", 942])
def test_another_word_is_refused(arch: object) -> None:
    with pytest.raises(OptionError, match="expected an architecture such as 'gfx942', found"):
        parse({"as_if": arch}, None)


@pytest.mark.parametrize("other", [{"verify": True}, {"conv_search": "on"}])
def test_what_runs_code_contradicts_it(other: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="as_if generates no code"):
        parse({"as_if": "gfx942", **other}, None)


def test_a_backward_graph_is_decided_too() -> None:
    norm = nn.RMSNorm(16)
    explanation = rocm_passes.explain(
        lambda x: norm(x).sum(), torch.randn(2, 16, requires_grad=True), options={"as_if": "gfx942"}
    )
    explanation.result.backward()
    assert norm.weight.grad is not None and explanation.sites


def test_measurements_of_that_machine_are_used_and_their_times_are_in_the_ledger(
    tmp_path: Path,
) -> None:
    """A file of choices from a gfx942 machine, read on another."""
    x, w = torch.randn(1, 16, 8, 128, 128), torch.randn(16, 16, 3, 3, 3)

    def explained(**options: str) -> rocm_passes.Explanation:
        given = {"as_if": "gfx942", **options}
        with torch.no_grad():
            return rocm_passes.explain(
                lambda x, w: nn.functional.conv3d(x, w, padding=1), x, w, options=given
            )

    with ahead.noting() as noted:
        explained()
    (call,) = noted.calls
    target = Target.named("gfx942")
    assert target is not None and len(call.able) > 1
    ms = {name: 2.0 + i for i, name in enumerate(call.able)}
    file = str(tmp_path / "choices.json")
    where = tuning.machine(target)
    store(file).add(where, call.key, Measured(ms, dict.fromkeys(ms, 0)))
    (site,) = explained(choices=file).sites
    assert site.lowering == call.able[0] and "2 ms" in site.reason
    assert {v.lowering: v.measured["ms"] for v in site.verdicts if v.measured} == ms


def test_without_idioms_nothing_is_compiled_either() -> None:
    explanation = rocm_passes.explain(
        model, *ARGUMENTS, options={"as_if": "gfx942", "idioms": "none"}
    )
    assert not explanation.sites
