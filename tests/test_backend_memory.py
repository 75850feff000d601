"""Graphs of convolutions keep the order that their code has: it lets go of activations soonest."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from rocm_passes import backend
from rocm_passes.target import Target

GPU = Target("amd", "gfx942", "MI300X", "2.11.0+rocm7", "3.6")
CPU = Target("cpu", "", "CPU", "2.11.0", None)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Mlp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


def patches(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, target: Target, **options: Any
) -> dict[str, Any]:
    """What Inductor's configuration is patched with for that module."""
    torch._dynamo.reset()
    monkeypatch.setattr(Target, "of_inputs", staticmethod(lambda _: target))
    with mock.patch.object(
        backend, "compile_fx", side_effect=lambda gm, *_, **__: gm.forward
    ) as compile_fx:
        torch.compile(module, backend=backend.rocm_diffusion, options=options or None)(
            torch.randn(1, 2, 3, 4, 5)
        )
    found: dict[str, Any] = compile_fx.call_args.kwargs["config_patches"]
    return found


def test_convolutions_on_a_gpu_are_not_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patches(monkeypatch, Decoder(), GPU)["reorder_for_locality"] is False


def test_what_the_user_asks_for_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    found = patches(monkeypatch, Decoder(), GPU, reorder_for_locality=True)
    assert found["reorder_for_locality"] is True


@pytest.mark.parametrize(
    ("module", "target", "options"),
    [
        (Mlp(), GPU, {}),
        (Decoder(), CPU, {}),
        (Decoder(), GPU, {"select": "off"}),
        (Decoder(), GPU, {"fuel": 0}),
        (Decoder(), GPU, {"idioms": "none"}),
    ],
    ids=["no convolution", "CPU", "off", "no fuel", "no idioms"],
)
def test_everything_else_stays_with_inductor(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, target: Target, options: dict[str, Any]
) -> None:
    assert "reorder_for_locality" not in patches(monkeypatch, module, target, **options)
