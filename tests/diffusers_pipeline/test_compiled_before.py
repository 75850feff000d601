"""What a user compiled before is reported as that, and "compiled" is said only where this package
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rocm_passes import compile_pipeline
from tests.diffusers_pipeline.doubles import Graphs
from tests.diffusers_pipeline.models import flux, image_vae, sdxl_unet

Way = Callable[[Any], Any]


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="aot_eager")


def with_attribute(module: Any, name: str, value: Any) -> Any:
    setattr(module, name, value)
    return module


def by_method(module: Any) -> Any:
    module.compile(backend="aot_eager")
    return module


WAYS: dict[str, Way] = {
    "by its method compile()": by_method,
    "by torch.compile(module)": compiled,
    "its forward is a compiled function": lambda m: with_attribute(
        m, "forward", compiled(m.forward)
    ),
}


@pytest.mark.parametrize("said", WAYS)
@pytest.mark.parametrize("how", ["auto", "whole", "blocks"])
def test_a_compiled_denoiser(graphs: Graphs, said: str, how: str) -> None:
    report = compile_pipeline(WAYS[said](flux()), how=how)
    assert report.compiled == []
    assert len(report.parts) == 1
    assert report.parts[0].name == "FluxTransformer2DModel"
    assert report.parts[0].detail.startswith("compiled already")
    assert said in report.parts[0].detail


@pytest.mark.parametrize("method", ["decode", "_decode", "tiled_decode"])
def test_a_compiled_method_of_a_vae(graphs: Graphs, method: str) -> None:
    """What it calls is traced into the user's graph, where the decoder's own compiled call is
    inlined.
    """
    vae = image_vae()
    report = compile_pipeline(with_attribute(vae, method, compiled(getattr(vae, method))))
    assert report.compiled == ["AutoencoderKL.encoder"]
    assert report.parts[0].detail == f"compiled already, within {method}()"


def test_a_compiled_decoder(graphs: Graphs) -> None:
    vae = image_vae()
    vae.decoder = compiled(vae.decoder)
    report = compile_pipeline(vae)
    assert report.compiled == ["AutoencoderKL.encoder"]
    assert report.parts[0].detail == "compiled already, by torch.compile(module)"


def test_compiling_a_vae_s_forward_does_not_reach_decode(graphs: Graphs) -> None:
    assert len(compile_pipeline(by_method(image_vae())).compiled) == 2
    assert len(compile_pipeline(compiled(image_vae())).compiled) == 2


def test_all_blocks_compiled_before(graphs: Graphs) -> None:
    model = flux(2)
    model.compile_repeated_blocks(backend="aot_eager")
    report = compile_pipeline(model, how="blocks")
    assert str(report) == (
        "FluxTransformer2DModel: skipped: 4 of 4 blocks: compiled already, by its method compile()"
    )


def test_some_blocks_compiled_before(graphs: Graphs) -> None:
    model = flux(2)
    by_method(model.transformer_blocks[0])
    model.single_transformer_blocks[1] = compiled(model.single_transformer_blocks[1])
    report = compile_pipeline(model, how="blocks")
    assert report.parts[0].detail.startswith("2 blocks one by one")
    assert 0.3 < report.shares["FluxTransformer2DModel"] < 0.7
    assert [p.detail for p in report.parts[1:]] == [
        "1 of 4 blocks: compiled already, by its method compile()",
        "1 of 4 blocks: compiled already, by torch.compile(module)",
    ]


def test_a_whole_that_holds_compiled_modules_is_not_compiled_over_them(graphs: Graphs) -> None:
    model = sdxl_unet()
    model.compile_repeated_blocks(backend="aot_eager")
    blocks = sum(type(m).__name__ == "BasicTransformerBlock" for m in model.modules())
    report = compile_pipeline(model, how="whole")
    assert report.compiled == []
    assert report.parts[0].detail == (
        f"{blocks} of its modules are compiled already; how='blocks' compiles the others"
    )


def test_the_rest_of_a_unet_whose_transformer_blocks_are_compiled(graphs: Graphs) -> None:
    model = sdxl_unet()
    model.compile_repeated_blocks(backend="aot_eager")
    report = compile_pipeline(model)
    assert "ResnetBlock2D" in report.parts[0].detail
    assert "BasicTransformerBlock" not in report.parts[0].detail
    assert "compiled already, by its method compile()" in report.parts[1].detail


def test_what_dynamo_would_not_trace(graphs: Graphs) -> None:
    model = flux()
    model.forward = torch.compiler.disable(model.forward)
    assert (
        compile_pipeline(model).parts[0].detail
        == "torch.compiler.disable was applied to its forward"
    )
    script = torch.jit.script(nn.Linear(2, 2))
    assert "TorchScript" in compile_pipeline(script).parts[0].detail
    with torch._dynamo.config.patch(disable=True):
        report = compile_pipeline(image_vae())
    assert report.compiled == []
    assert all("torch.compile is disabled in this process" in p.detail for p in report.parts)


def test_our_own_whole_is_known_again(graphs: Graphs) -> None:
    model = sdxl_unet()
    assert compile_pipeline(model).compiled == ["UNet2DConditionModel"]
    assert compile_pipeline(model).parts[0].detail == "compiled already, by compile_pipeline"
