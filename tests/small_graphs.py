"""Small graphs, calls and idioms for tests of the pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rocm_passes.idioms.norms import rms_norm
from rocm_passes.ops.operator import Call, Lowering
from rocm_passes.report.ledger import Entry
from rocm_passes.rewrite.match import Idiom
from rocm_passes.target import Target

CPU = Target("cpu", "", "CPU", torch.__version__, None)
GPU = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6")
D = 32
aten = torch.ops.aten


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * 2)


@dataclass(frozen=True)
class Twice(Call):
    x: Tensor


@dataclass(frozen=True)
class Anything(Call):
    x: tuple[Any, ...] = ()


def with_lowerings(*lowerings: Lowering[Any]) -> Idiom:
    return Idiom("rms_norm", rms_norm.find, lowerings, rms_norm.IDIOM.operator)


def install(monkeypatch: pytest.MonkeyPatch, *idioms: Idiom) -> None:
    monkeypatch.setattr("rocm_passes.graph_pass.IDIOMS", idioms)


def check_eager(seen: Any, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(seen.result, model(x), rtol=1e-5, atol=1e-5)


def verdicts(entry: Entry) -> dict[str, str]:
    return {v.lowering: v.verdict for v in entry.verdicts}
