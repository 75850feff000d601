"""compile_pipeline on two ranks: diffusers' context parallelism, FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor, nn

from rocm_passes import compile_pipeline, history
from tests.diffusers_pipeline.models import flux, flux_inputs, wan, wan_inputs, wan_pipeline
from tests.distributed.checks import Findings, check, distance, exhaustive, two_devices
from tests.without_codegen import without_codegen

ALWAYS = {"select": "always"}


def ulysses(model: Any, **how: Any) -> None:
    with two_devices():
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, **how))


def _found(call: Callable[[], Tensor], prepare: Callable[[], Any]) -> Findings:
    """The report, the sites, and how far the result is from one process's eager one."""
    with torch.no_grad():
        expected = call()
    seen = len(history())
    with without_codegen(), torch.no_grad():
        report = prepare()
        result = call()
    entries = [e for g in history()[seen:] for e in g.entries]
    return {
        "report": str(report),
        "compiled": report.compiled,
        "distance": distance(result, expected),
        "rewritten": sorted(e.idiom for e in entries if e.outcome == "rewritten"),
        "graphs": len(history()) - seen,
    }


def _of_model(model: Any, inputs: dict[str, Any], prepare: Callable[[Any], Any]) -> Findings:
    return _found(lambda: model(**inputs)[0], lambda: prepare(model))


@check
def ulysses_of_a_pipeline() -> Findings:
    """A WanPipeline that is called as a user calls it, up to its latents."""
    pipe = wan_pipeline()

    def call() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        embeds = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
        latents: Tensor = pipe(
            prompt_embeds=embeds, height=32, width=32, num_frames=5, num_inference_steps=1,
            guidance_scale=1.0, generator=generator, output_type="latent",
        ).frames  # fmt: skip
        return latents

    def prepare() -> Any:
        ulysses(pipe.transformer)
        return compile_pipeline(pipe, vae=False, options=ALWAYS)

    return _found(call, prepare)


@exhaustive
def ulysses_after_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, how="blocks", options=ALWAYS)
        ulysses(model)
        return report

    return _of_model(wan(layers=1), wan_inputs(), prepare)


@check
def ulysses_after_the_first_call() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, how="blocks", options=ALWAYS)
        model(**wan_inputs())
        ulysses(model)
        return report

    return _of_model(wan(layers=1), wan_inputs(), prepare)


@exhaustive
def ulysses_of_flux() -> Findings:
    def prepare(model: Any) -> Any:
        ulysses(model)
        return compile_pipeline(model, options=ALWAYS)

    return _of_model(flux(heads=4), flux_inputs(), prepare)


@check
def a_whole_model_with_ulysses() -> Findings:
    """Compiled by no call: only the report is looked at."""
    model = wan(layers=1)
    ulysses(model)
    return {"report": str(compile_pipeline(model, how="whole", options=ALWAYS))}


def _shard(model: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@check
def fsdp_before_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        _shard(model)
        return compile_pipeline(model, options=ALWAYS)

    return _of_model(wan(layers=1), wan_inputs(), prepare)


@check
def fsdp_after_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, how="blocks", options=ALWAYS)
        _shard(model)
        return report

    return _of_model(wan(layers=1), wan_inputs(), prepare)
