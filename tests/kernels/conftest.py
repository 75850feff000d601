"""On a machine with a GPU the kernel tests run there, though their tensors are on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.on_the_gpu import over_there

KERNELS = (
    "fused_norm",
    "channel_norm",
    "group_norm",
    "group_norm_pad",
    "pad",
    "copy_frames",
    "rotary",
    "rotary_pair",
    "qk_norm_rotary",
)


@pytest.fixture(autouse=True)
def on_the_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available() or "test_triton" not in request.module.__name__:
        return
    for name in KERNELS:
        if callable(getattr(request.module, name, None)):
            monkeypatch.setattr(request.module, name, over_there(getattr(request.module, name)))
