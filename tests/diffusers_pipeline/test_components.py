"""What each component of diffusers' pipelines is taken for: by its class and by how often its
pipeline runs it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rocm_passes import compile_pipeline
from rocm_passes.diffusers_pipeline import usage
from rocm_passes.diffusers_pipeline.components import DENOISER, OTHER, RESAMPLER, VAE, role
from tests.diffusers_pipeline.doubles import Graphs, pipeline


def bare(cls: type[nn.Module]) -> nn.Module:
    """A module of a class, without submodules."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def by_path(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"diffusers.{module}"), name)


@pytest.mark.parametrize(
    ("pipe", "component", "cls"),
    [
        ("FluxPipeline", "transformer", "FluxTransformer2DModel"),
        ("WanPipeline", "transformer_2", "WanTransformer3DModel"),
        ("ZImagePipeline", "transformer", "ZImageTransformer2DModel"),
        ("StableDiffusionXLPipeline", "unet", "UNet2DConditionModel"),
        ("VersatileDiffusionPipeline", "image_unet", "UNet2DConditionModel"),
        ("UnCLIPPipeline", "decoder", "UNet2DConditionModel"),
        ("KandinskyV22CombinedPipeline", "prior_prior", "PriorTransformer"),
        ("StableCascadeCombinedPipeline", "decoder", "StableCascadeUNet"),
        ("StableDiffusionXLControlNetPipeline", "controlnet", "ControlNetModel"),
        ("FluxControlNetPipeline", "controlnet", "FluxMultiControlNetModel"),
        # It takes no timestep: its pipeline calls it in the loop.
        ("AmusedPipeline", "transformer", "UVit2DModel"),
    ],
)
def test_denoisers(pipe: str, component: str, cls: str) -> None:
    assert role(component, bare(getattr(diffusers, cls)), getattr(diffusers, pipe)).kind == DENOISER


def test_a_second_transformer_under_any_name(graphs: Graphs) -> None:
    ideogram = pytest.importorskip("diffusers.models.transformers.transformer_ideogram4")
    model = bare(ideogram.Ideogram4Transformer2DModel)
    assert role("unconditional_transformer", model, None).kind == DENOISER


@pytest.mark.parametrize(
    ("pipe", "component", "cls", "words"),
    [
        (
            "FluxPipeline",
            "text_encoder_2",
            "T5EncoderModel",
            "of transformers runs once a call, outside",
        ),
        (
            "AudioLDM2Pipeline",
            "vocoder",
            "SpeechT5HifiGan",
            "of transformers runs once a call, outside",
        ),
        (
            "KandinskyV22CombinedPipeline",
            "prior_text_encoder",
            "CLIPTextModelWithProjection",
            "is taken to",
        ),
        (
            "StableDiffusionAdapterPipeline",
            "adapter",
            "T2IAdapter",
            "T2IAdapter runs once a call, outside",
        ),
        (
            "AudioLDM2Pipeline",
            "projection_model",
            "AudioLDM2ProjectionModel",
            "include=['projection_model'] compiles it",
        ),
        (
            "AnimateDiffPipeline",
            "motion_adapter",
            "MotionAdapter",
            "unknown: MotionAdapter takes no timestep",
        ),
    ],
)
def test_what_is_left_alone_and_why(pipe: str, component: str, cls: str, words: str) -> None:
    found = getattr(diffusers, cls, None) or getattr(transformers, cls)
    decided = role(component, bare(found), getattr(diffusers, pipe))
    assert decided.kind == OTHER
    assert words in decided.reason


def test_ltx2_s_vocoder_runs_once_a_call() -> None:
    vocoder = pytest.importorskip("diffusers.pipelines.ltx2.vocoder")
    decided = role("vocoder", bare(vocoder.LTX2Vocoder), diffusers.LTX2Pipeline)
    assert decided.reason.startswith("LTX2Vocoder runs once a call, outside the denoising loop")


def test_a_latent_upsampler_is_compiled_as_a_decoder_is(graphs: Graphs) -> None:
    upsampler = by_path("pipelines.ltx.modeling_latent_upsampler.LTXLatentUpsamplerModel")
    model = upsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1)
    assert role("latent_upsampler", model, diffusers.LTXLatentUpsamplePipeline).kind == RESAMPLER
    report = compile_pipeline(pipeline(latent_upsampler=model))
    assert str(report) == ("latent_upsampler: compiled: whole, static shapes; 100 % of its weights")
    assert compile_pipeline(pipeline(other=model), vae=False).parts[0].detail == "vae=False"


def test_vaes_under_any_name() -> None:
    movq = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=8)
    assert role("movq", movq, None).kind == VAE
    assert role("vae", torch.compile(movq, backend="eager"), None).kind == VAE
    assert role("decoder", nn.Sequential(nn.Linear(2, 2)), None).kind == OTHER


def test_a_module_that_nothing_is_known_of(graphs: Graphs) -> None:
    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class OwnPipeline:
        def __init__(self) -> None:
            self.components = {"scorer": Custom()}

        def __call__(self) -> None: ...

    report = compile_pipeline(OwnPipeline())
    assert report.skipped == ["scorer"]
    for part in ("no timestep", "no decoder", "OwnPipeline.__call__", "include=['scorer']"):
        assert part in report.parts[0].detail
    assert compile_pipeline(OwnPipeline(), include=["scorer"]).compiled == ["scorer"]


class Looping:
    """A pipeline to read: what runs at each step, once, in a loop that is no denoising loop, or not
    at all.
    """

    def __call__(self, prompts: Any, sizes: Any) -> Any:
        if self.checker is not None and hasattr(self, "other"):
            sizes = self.described.config.sizes
        self.moved.to("cpu")
        for prompt in prompts:
            self.encode(prompt)
        for chunk in sizes:
            self.per_chunk(chunk)
            for t in chunk:
                model = self.first if t > 1 else self.second
                self.guide(t)
                self.scheduler.step(model(t))
        return self.codec.decode(sizes)

    def encode(self, prompt: Any) -> None:
        self.encoder(prompt)

    def guide(self, t: Any) -> None:
        self.controller(t)


@pytest.mark.parametrize(
    ("component", "often"),
    [
        ("first", usage.EACH_STEP),
        ("second", usage.EACH_STEP),
        ("controller", usage.EACH_STEP),
        ("encoder", usage.ONCE),
        ("per_chunk", usage.ONCE),
        ("codec", usage.ONCE),
        ("checker", usage.NOT_SEEN),
        ("described", usage.NOT_SEEN),
        ("moved", usage.NOT_SEEN),
        ("other", usage.NOT_SEEN),
    ],
)
def test_how_often_a_pipeline_runs_a_component(component: str, often: str) -> None:
    assert usage.how_often(Looping, component) == often


def test_a_source_that_cannot_be_read_decides_nothing() -> None:
    made: dict[str, Any] = {}
    exec("class Made:\n    def __call__(self): self.model()", made)
    assert usage.how_often(made["Made"], "model") == usage.NOT_SEEN


#: Classes of diffusers' denoising folders that no pipeline runs by themselves: adapters merged into
#: a UNet.
MERGED = {"MotionAdapter", "ControlNetXSAdapter"}
DENOISING = (
    "diffusers.models.transformers.",
    "diffusers.models.unets.",
    "diffusers.models.controlnets.",
)


@pytest.mark.exhaustive
def test_every_component_of_every_pipeline() -> None:
    """By the folder in which diffusers keeps its class, which `role` does not look at."""
    found = set(_components_of_diffusers())
    assert len(found) > 200
    for pipe, name, cls in found:
        decided = role(name, bare(cls), pipe)
        where = f"{pipe.__name__}.{name}: {cls.__name__}: {decided}"
        if cls.__module__.startswith("transformers."):
            assert decided.kind == OTHER, where
            assert "of transformers" in decided.reason, where
        elif cls.__module__.startswith(DENOISING) and cls.__name__ not in MERGED:
            assert decided.kind == DENOISER, where
        elif decided.kind == OTHER and not hasattr(cls, "decode"):
            assert "once a call" in decided.reason or "unknown: " in decided.reason, where


def _components_of_diffusers() -> Iterator[tuple[type, str, type[nn.Module]]]:
    for module in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        try:
            members = vars(importlib.import_module(module.name)).values()
        except (ImportError, RuntimeError):
            continue
        for pipe in members:
            if (
                inspect.isclass(pipe)
                and issubclass(pipe, DiffusionPipeline)
                and pipe is not DiffusionPipeline
            ):
                yield from ((pipe, n, c) for n, h in _hints(pipe).items() for c in _classes(h))


def _hints(pipe: type) -> dict[str, Any]:
    try:
        return get_type_hints(pipe.__init__)
    except (NameError, TypeError):
        return {}


def _classes(hint: Any) -> Iterator[type[nn.Module]]:
    if inspect.isclass(hint) and issubclass(hint, nn.Module):
        yield hint
    for inner in get_args(hint):
        yield from _classes(inner)
