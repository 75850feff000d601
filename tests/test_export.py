"""torch.export and AOTInductor: what works, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocm_passes.options import OPTION_NAMES
from tests.idioms.norm_cases import outcomes, use_reference
from tests.rewriting import rewrite


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(x, (16,), self.weight, 1e-5) * (1 + scale)


ARGS = (torch.randn(2, 5, 16), torch.randn(2, 1, 16))


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_is_rewritten(
    decomposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module is compiled as any other, also after `run_decompositions`."""
    use_reference(monkeypatch)
    model = Norm()
    with torch.no_grad():
        exported = torch.export.export(model, ARGS)
        exported = exported.run_decompositions() if decomposed else exported
        seen = rewrite(exported.module(), *ARGS)
        torch.testing.assert_close(seen.result, model(*ARGS))
    assert outcomes(seen) == [("norm_modulate", "rewritten")]


@pytest.mark.parametrize("name", ["select", "rewrite_numerics", "lowering"])
def test_aot_inductor_refuses_our_options_by_name(name: str, tmp_path: Path) -> None:
    """It has no backends, and takes options of Inductor alone: nothing is silently left out."""
    assert name in OPTION_NAMES
    with torch.no_grad():
        exported = torch.export.export(Norm(), ARGS)
    with pytest.raises(Exception, match=name):
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2"), inductor_configs={name: "always"}
        )
