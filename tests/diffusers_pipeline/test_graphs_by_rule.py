"""CUDA graphs without being asked for: UNets on NVIDIA, whose forward the host bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from rocm_passes import compile_pipeline
from rocm_passes.diffusers_pipeline import denoiser
from tests.diffusers_pipeline.doubles import Graphs, pipeline
from tests.diffusers_pipeline.models import flux
from tests.diffusers_pipeline.models import sdxl_unet as unet

REPLAYED = "CUDA graphs replay its launches; mode='default' turns them off"


@pytest.fixture(autouse=True)
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose modules lie on an NVIDIA GPU."""
    monkeypatch.setattr(denoiser, "_vendor", lambda model: "nvidia")


def compiled(model: nn.Module, **settings: Any) -> tuple[str, dict[str, Any]]:
    """What the report says of the model, and the options that its compiled call has."""
    seen: list[dict[str, Any]] = []
    original = denoiser.compile_in_place

    def compile_in_place(module: nn.Module, **how: Any) -> None:
        seen.append(how)
        original(module, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "compile_in_place", compile_in_place)
        report = compile_pipeline(pipeline(unet=model), **settings)
    assert all(how == seen[0] for how in seen)
    return report.parts[0].detail, seen[0]


def test_a_unet_is_replayed() -> None:
    detail, how = compiled(unet(), options={"select": "rules"})
    assert detail.startswith("whole: its ") and detail.endswith(REPLAYED)
    assert (how["graphs"], how["options"]) == (
        True,
        {"select": "rules", "mode": "reduce-overhead"},
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "default"},
        {"mode": "max-autotune-no-cudagraphs"},
        {"options": {"mode": "default"}},
        {"options": {"triton.cudagraphs": False}},
        {"options": {"verify": "live"}},
        {"options": {"check_finite": 2}},
        {"dynamic": True},
        {"how": "blocks"},
        {"how": "whole"},
    ],
    ids=str,
)
def test_who_says_otherwise_gets_none(settings: dict[str, Any]) -> None:
    detail, how = compiled(unet(), **settings)
    assert REPLAYED not in detail and how["graphs"] is False
    assert how["options"].get("mode") != "reduce-overhead"


def test_a_transformer_is_bound_by_the_device() -> None:
    detail, how = compiled(flux())
    assert REPLAYED not in detail and how["graphs"] is False


@pytest.mark.parametrize("vendor", ["amd", "cpu"])
def test_elsewhere_graphs_are_measured_first(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "_vendor", lambda model: vendor)
    detail, how = compiled(unet())
    assert REPLAYED not in detail and how["graphs"] is False


def test_a_model_that_is_trained_is_not_replayed() -> None:
    detail, how = compiled(unet().train())
    assert REPLAYED not in detail and how["graphs"] is False


def test_weights_that_move_are_not_replayed() -> None:
    model = unet()
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    report = compile_pipeline(pipeline(unet=model))
    assert all(REPLAYED not in part.detail for part in report.parts)


def test_a_vae_beside_it_has_none(graphs: Graphs) -> None:
    """Its options are those that were given."""
    from tests.diffusers_pipeline.test_compile_pipeline import VAE

    pipe = pipeline(unet=unet(), vae=VAE())
    compile_pipeline(pipe)
    with torch.no_grad():
        pipe.components["vae"].decode(torch.randn(2, 4))
    (options,) = graphs.options
    assert "mode" not in (options or {})


def test_the_vendor_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert denoiser._vendor(unet()) == "cpu"
    assert denoiser._vendor(nn.Identity()) == ""
