"""compile_pipeline: what is compiled, how, what is left alone, and that the results are those of
eager.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rocm_passes import OptionError, compile_pipeline, history
from rocm_passes.diffusers_pipeline import compile_vae
from rocm_passes.diffusers_pipeline.compiling import CachedFrames
from tests.diffusers_pipeline.doubles import Graphs, pipeline
from tests.without_codegen import codegen_if_asked
from tests.zoo import vaes
from tests.zoo.denoisers import Z_IMAGE


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


class Transformer(nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Block()
        self.decoder = Block()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.decoder(z[:1]), self.decoder(z[1:])])


def test_each_part_is_compiled_in_its_way_and_reported(graphs: Graphs) -> None:
    pipe = pipeline(
        transformer=Transformer(), vae=VAE(), text_encoder=nn.Linear(2, 2), tokenizer=object()
    )
    report = compile_pipeline(pipe, options={"select": "off"})
    assert report.compiled == ["transformer", "vae.decoder", "vae.encoder"]
    assert report.skipped == ["text_encoder"]
    first = str(report).splitlines()[0]
    assert first.startswith("transformer: compiled: 3 blocks") and "100 %" in first
    x = torch.randn(2, 4)
    with torch.no_grad():
        pipe.components["transformer"](x)
        pipe.components["vae"].decode(torch.randn(2, 4))
    assert graphs.count == 2
    assert graphs.options == [{"select": "off"}] * 2


def test_parts_can_be_left_out(graphs: Graphs) -> None:
    report = compile_pipeline(
        pipeline(transformer=Transformer(), vae=VAE()), transformer=False, vae=False
    )
    assert [(p.name, p.action, p.detail) for p in report.parts] == [
        ("transformer", "skipped", "transformer=False"),
        ("vae", "skipped", "vae=False"),
    ]


def test_bare_modules(graphs: Graphs) -> None:
    assert compile_pipeline(VAE()).compiled == ["VAE.decoder", "VAE.encoder"]
    assert compile_pipeline(Transformer()).compiled == ["Transformer"]
    assert compile_pipeline(nn.Linear(2, 2)).parts[0].detail == "whole"


def test_torch_s_own_modules_are_traced(graphs: Graphs) -> None:
    """Dynamo skips their frames: "compiled" would be said of what runs in eager."""
    model = nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    x = torch.randn(1, 2)
    expected = model(x)
    compile_pipeline(model)
    assert torch.equal(model(x), expected)
    assert graphs.count == 1


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(
        TypeError, match="expected a diffusers pipeline or a module of one, found int"
    ):
        compile_pipeline(3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": {"selct": "off"}}, "did you mean 'select'"),
        ({"options": {"rewrite_numerics": "sloppy"}}, "option 'rewrite_numerics'"),
        ({"options": "fast"}, "options: expected a dict"),
        ({"mode": "reduce-overheads"}, "did you mean 'reduce-overhead'"),
        ({"mode": "default", "options": {"mode": "max-autotune"}}, "mode: expected it once"),
        ({"how": "block"}, "did you mean 'blocks'"),
        ({"dynamic": "yes"}, "dynamic: expected None, True or False"),
        ({"vae_dtype": "bf61"}, "vae_dtype: expected one of 'bf16', 'fp16'"),
        (
            {"vae_dtype": "bf16", "options": {"rewrite_numerics": "strict"}},
            "beside rewrite_numerics='strict'",
        ),
        ({"vae_dtype": "bf16", "options": {"conv_dtype": "fp16"}}, "'fp16' as in option"),
        ({"include": ["vea"]}, "did you mean 'vae'"),
        ({"exclude": "vae"}, "exclude: expected a list"),
        ({"exclude": ["vae"], "include": ["vae"]}, "exclude: expected no name that include has"),
        ({"cache_artifacts": 3}, "cache_artifacts: expected a file path"),
        ({"warm": 3}, "warm: expected a dict"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(
    graphs: Graphs, wrong: dict[str, Any], message: str
) -> None:
    vae = VAE()
    with pytest.raises(OptionError, match=message):
        compile_pipeline(pipeline(vae=vae), **wrong)
    assert vae.decoder._compiled_call_impl is None


def test_a_component_can_be_excluded_and_included(graphs: Graphs) -> None:
    pipe = pipeline(transformer=Transformer(), vae=VAE(), connectors=nn.Linear(2, 2))
    report = compile_pipeline(pipe, include=["connectors"], exclude=["vae"])
    assert report.compiled == ["transformer", "connectors"]
    assert [(p.name, p.detail) for p in report.parts if p.action == "skipped"] == [
        ("vae", "exclude has it")
    ]


def test_a_module_with_two_names_is_compiled_once(graphs: Graphs) -> None:
    model = Transformer()
    report = compile_pipeline(pipeline(transformer=model, transformer_2=model))
    assert report.compiled == ["transformer"]
    assert report.parts[1].detail == "it is the same module as transformer"


def test_a_mode_reaches_the_backend_and_a_vae_gets_no_cuda_graphs(graphs: Graphs) -> None:
    pipe = pipeline(transformer=Transformer(), vae=VAE())
    report = compile_pipeline(pipe, mode="reduce-overhead", options={"select": "off"})
    with torch.no_grad():
        pipe.components["transformer"](torch.randn(2, 4))
        pipe.components["vae"].decode(torch.randn(2, 4))
    denoiser, decoder = graphs.options
    assert denoiser == {"select": "off", "mode": "reduce-overhead"}
    assert decoder == {**denoiser, "triton.cudagraphs": False}
    assert report.parts[0].detail == "whole: one CUDA graph rather than one a block"
    assert "without CUDA graphs" in report.parts[1].detail


def test_results_of_cuda_graphs_are_copied(graphs: Graphs) -> None:
    """The next replay writes into the same memory: a pipeline still holds the prediction before."""
    kept = torch.zeros(2, 4)

    def replay(gm: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return lambda *args: (kept.copy_(gm.forward(*args)[0]),)

    graphs.run = replay
    model = Transformer()
    compile_pipeline(model, mode="reduce-overhead")
    with torch.no_grad():
        first = model(torch.ones(2, 4))
        expected = first.clone()
        model(torch.zeros(2, 4))
    assert torch.equal(first, expected)
    assert not torch.equal(kept, expected)


def test_a_second_time_changes_nothing(graphs: Graphs) -> None:
    vae = VAE()
    compile_vae(vae)
    kept = vae.decoder._compiled_call_impl
    assert [p.detail for p in compile_vae(vae).parts] == [
        "compiled already, by compile_pipeline"
    ] * 2
    assert vae.decoder._compiled_call_impl is kept


def test_sequential_offloading_is_left_alone(graphs: Graphs) -> None:
    vae = VAE()
    vae.decoder._hf_hook = type("AlignDevicesHook", (), {"offload": True})()
    report = compile_vae(vae)
    assert report.compiled == ["vae.encoder"]
    assert report.parts[0].detail == "sequential CPU offloading moves its weights within a call"


def test_numpy_booleans_become_python_s(graphs: Graphs) -> None:
    import numpy as np

    vae = VAE()
    vae.decoder.upsamples = np.bool_(True)
    report = compile_vae(vae)
    assert vae.decoder.upsamples is True
    assert report.names("changed") == ["vae"]
    assert "upsamples" in report.parts[0].detail


def test_static_shapes_have_room_for_many_sizes(graphs: Graphs) -> None:
    """Tiles at the edges of an image have other sizes; eight of them must not end in eager."""
    vae = VAE()
    compile_vae(vae)
    with torch.no_grad():
        for n in range(1, 15):
            vae.decode(torch.randn(n + 1, 4))
    assert graphs.count == 14


def test_wan_s_decode_settles_on_three_graphs(graphs: Graphs) -> None:
    """For each length: a chunk is a view of the latents, whose strides depend on their frames."""
    vae: Any = vaes.SMALL_WAN.build(torch.float32)
    with torch.no_grad():
        videos = [torch.randn(1, 4, frames, 4, 5) for frames in (3, 5)]
        expected = [vae.decode(z).sample for z in videos]
        compile_pipeline(vae)
        for lengths, (z, wanted) in enumerate(zip(videos, expected, strict=True), 1):
            for _ in range(2):
                assert torch.equal(vae.decode(z).sample, wanted)
            assert graphs.count == 3 * lengths


def test_wan_s_encoder_too(graphs: Graphs) -> None:
    vae: Any = vaes.SMALL_WAN.build(torch.float32)
    x = torch.randn(1, 3, 9, 16, 24)
    with torch.no_grad():
        expected = vae.encode(x).latent_dist.mode()
        compile_pipeline(vae)
        assert torch.equal(vae.encode(x).latent_dist.mode(), expected)
    assert graphs.count == 3


def test_tiling_runs_compiled(graphs: Graphs) -> None:
    vae: Any = vaes.IMAGE.build(torch.float32)
    vae.enable_tiling()
    z = torch.randn(1, 4, vae.tile_latent_min_size + 4, vae.tile_latent_min_size)
    with torch.no_grad():
        expected = vae.decode(z).sample
        compile_pipeline(vae)
        assert torch.equal(vae.decode(z).sample, expected)
    assert graphs.count > 1


def test_hunyuan_15_compiles_as_one_graph(graphs: Graphs) -> None:
    vae: Any = vaes.HUNYUAN_VIDEO15.build(torch.float32)
    args, kwargs = vaes.HUNYUAN_VIDEO15.inputs(vae)
    with torch.no_grad():
        expected = vae.decode(*args, **kwargs)[0]
        report = compile_pipeline(vae)
        assert torch.equal(vae.decode(*args, **kwargs)[0], expected)
    assert "add_temporal_upsample" in report.parts[0].detail
    assert graphs.count == 1


def test_z_image_compiles_cold(graphs: Graphs) -> None:
    model = Z_IMAGE.build(torch.float32)
    expected = Z_IMAGE.run(model)
    model = Z_IMAGE.build(torch.float32)
    assert compile_pipeline(model).compiled == ["ZImageTransformer2DModel"]
    for got, want in zip(Z_IMAGE.run(model), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_cached_frames_stand_for_their_tensor() -> None:
    frames = CachedFrames(torch.arange(4))
    assert (frames == "Rep") is False
    assert (frames != "Rep") is True
    assert torch.equal(frames[2:], torch.tensor([2, 3]))
    assert frames.to(torch.float32).dtype is torch.float32


def test_through_the_backend_itself() -> None:
    vae: Any = vaes.QWEN_IMAGE.build(torch.float32)
    expected = vaes.QWEN_IMAGE.run(vae)
    compile_pipeline(vae)
    with codegen_if_asked():
        results = vaes.QWEN_IMAGE.run(vae)
    assert any(entry.idiom == "conv3d" for entry in history()[-1].entries)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(
            got, want, rtol=1e-4, atol=1e-4
        )  # thirty convolutions in another order
