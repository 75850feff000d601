"""compile_pipeline on two ranks: diffusers' context parallelism, FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import nn

from rocm_passes import compile_pipeline, history
from tests.distributed.checks import Findings, check, distance, two_devices
from tests.diffusers_pipeline.models import flux, flux_inputs, wan, wan_inputs
from tests.without_codegen import without_codegen

ALWAYS = {"select": "always"}


def ulysses(model: Any, **how: Any) -> None:
    with two_devices():
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, **how))


def _found(
    model: Any, inputs: dict[str, Any], prepare: Callable[[Any], Any], how: str = "auto"
) -> Findings:
    """The report, the sites, and how far the result is from one process's eager one."""
    with torch.no_grad():
        expected = model(**inputs)[0]
    seen = len(history())
    with without_codegen(), torch.no_grad():
        report = prepare(model)
        result = model(**inputs)[0]
        again = model(**inputs)[0]
    entries = [e for g in history()[seen:] for e in g.entries]
    return {
        "report": str(report),
        "compiled": report.compiled,
        "distance": max(distance(result, expected), distance(again, expected)),
        "rewritten": sorted(e.idiom for e in entries if e.outcome == "rewritten"),
        "graphs": len(history()) - seen,
    }


@check
def ulysses_before_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        ulysses(model)
        return compile_pipeline(model, options=ALWAYS)

    return _found(wan(), wan_inputs(), prepare)


@check
def ulysses_after_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, options=ALWAYS)
        ulysses(model)
        return report

    return _found(wan(), wan_inputs(), prepare)


@check
def ulysses_after_the_first_call() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, options=ALWAYS)
        model(**wan_inputs())
        ulysses(model)
        return report

    return _found(wan(), wan_inputs(), prepare)


@check
def ulysses_of_flux() -> Findings:
    def prepare(model: Any) -> Any:
        ulysses(model)
        return compile_pipeline(model, options=ALWAYS)

    return _found(flux(heads=4), flux_inputs(), prepare)


@check
def a_whole_model_with_ulysses() -> Findings:
    def prepare(model: Any) -> Any:
        ulysses(model)
        return compile_pipeline(model, how="whole", options=ALWAYS)

    return _found(wan(), wan_inputs(), prepare)


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

    return _found(wan(), wan_inputs(), prepare)


@check
def fsdp_after_compile_pipeline() -> Findings:
    def prepare(model: Any) -> Any:
        report = compile_pipeline(model, options=ALWAYS)
        _shard(model)
        return report

    return _found(wan(), wan_inputs(), prepare)
