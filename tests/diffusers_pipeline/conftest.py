from __future__ import annotations

import pytest
import torch

from rocm_passes.diffusers_pipeline import compiling
from tests.diffusers_pipeline.doubles import Graphs


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    torch._dynamo.reset()
    counting = Graphs()
    monkeypatch.setattr(compiling, "rocm_diffusion", counting)
    return counting
