"""Several devices in one process: each graph is chosen for the card that it runs on."""

from __future__ import annotations

import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes import history
from rocm_passes.backend import rocm_diffusion
from rocm_passes.options import Options
from rocm_passes.report.remembered import key_of
from rocm_passes.rewrite.cache_key import cache_key
from rocm_passes.target import Target, _gpu
from tests.without_codegen import without_codegen

CARDS = {0: "gfx942:sramecc+:xnack-", 1: "gfx1100"}


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: types.SimpleNamespace(name=f"card {index}", gcnArchName=CARDS[index]),
    )
    _gpu.cache_clear()
    yield
    _gpu.cache_clear()


def on(index: int) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(4, device=f"cuda:{index}")


def test_two_pipelines_on_two_cards_have_a_target_each(two_cards: None) -> None:
    targets = [Target.of_inputs([3, torch.ones(1), on(index)]) for index in (1, 0)]
    assert [(t.arch, t.name) for t in targets] == [("gfx1100", "card 1"), ("gfx942", "card 0")]
    assert cache_key(Options(), targets[0], ()) != cache_key(Options(), targets[1], ())


def test_what_is_remembered_of_a_graph_is_by_device_and_compared_without_its_number() -> None:
    gm = torch.fx.symbolic_trace(nn.ReLU())
    keys = [key_of(gm, [on(index)], "key") for index in (0, 1)]
    assert keys[0] != keys[1]
    across = [key_of(gm, [on(index)], "key", of_device=False) for index in (0, 1)]
    assert across[0] == across[1]


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def test_a_model_that_was_moved_is_compiled_for_its_new_device() -> None:
    """The other GPU is the meta device, whose graphs Inductor empties: there are no sites then."""
    model = Norm()
    compiled = torch.compile(model, backend=rocm_diffusion, options={"select": "always"})
    with without_codegen(), torch.no_grad():
        first = compiled(torch.randn(2, 16))
        model.to("meta")
        moved = compiled(torch.empty(2, 16, device="meta"))
    assert (first.device.type, moved.device.type) == ("cpu", "meta")
    assert [[e.outcome for e in g.entries] for g in history()] == [["rewritten"], []]
