"""Hooks that move or convert weights: compiled round them, or skipped with the exact reason.

On a CPU alone: the hooks are the real ones of accelerate and diffusers, and move weights from the
CPU to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading

from rocm_passes import compile_pipeline
from tests.diffusers_pipeline.doubles import Graphs
from tests.diffusers_pipeline.models import flux, flux_inputs, image_vae, sdxl_unet

SEQUENTIAL = "sequential CPU offloading moves its weights within a call"
DEVICE_MAP = "device_map attached hooks to its layers; Dynamo breaks the graph at each"
LAYERWISE = "layerwise casting converts the weights at each layer, where Dynamo breaks the graph"
LEAF = (
    "group offloading (leaf_level) moves weights within a call, and Dynamo breaks the graph at "
    "each move"
)
BLOCK = LEAF.replace("leaf_level", "block_level")


def model_offload(model: Any) -> None:
    accelerate.cpu_offload_with_hook(model, "cpu")


def sequential(model: Any) -> None:
    accelerate.cpu_offload(model, "cpu", offload_buffers=True)


def device_map(model: Any) -> None:
    accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def layerwise(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def by_leaf(model: Any) -> None:
    apply_group_offloading(model, "cpu", offload_type="leaf_level")


def by_block(model: Any) -> None:
    apply_group_offloading(model, "cpu", offload_type="block_level", num_blocks_per_group=1)


def first_block_cache(model: Any) -> None:
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))


@pytest.mark.parametrize("how", ["auto", "blocks", "whole"])
@pytest.mark.parametrize(
    ("offload", "reason"), [(sequential, SEQUENTIAL), (by_leaf, LEAF), (layerwise, LAYERWISE)]
)
def test_denoisers_that_fall_into_pieces(
    graphs: Graphs, offload: Callable[[Any], None], reason: str, how: str
) -> None:
    model = flux()
    offload(model)
    report = compile_pipeline(model, how=how)
    assert report.compiled == []
    assert all(reason in p.detail for p in report.parts)


@pytest.mark.parametrize(
    ("offload", "reason"),
    [(sequential, SEQUENTIAL), (by_leaf, LEAF), (layerwise, LAYERWISE), (by_block, BLOCK)],
)
def test_vaes_that_fall_into_pieces(
    graphs: Graphs, offload: Callable[[Any], None], reason: str
) -> None:
    vae = image_vae()
    offload(vae)
    report = compile_pipeline(vae)
    assert report.compiled == []
    assert [p.detail for p in report.parts] == [reason, reason]


@pytest.mark.parametrize(
    ("offload", "note"),
    [
        (by_block, "group offloading (block_level) moves it before a call"),
        (model_offload, "model CPU offloading moves it before a call"),
    ],
)
def test_blocks_behind_hooks_are_one_graph_each(
    graphs: Graphs, offload: Callable[[Any], None], note: str
) -> None:
    model = flux()
    with torch.no_grad():
        expected = model(**flux_inputs())[0]
        offload(model)
        report = compile_pipeline(model, how="blocks")
        assert torch.equal(model(**flux_inputs())[0], expected)
    assert note in report.parts[0].detail
    # One graph of a FluxTransformerBlock and one of a FluxSingleTransformerBlock; group offloading
    # adds small ones for the sizes of its hooks.
    assert sum(n > 50 for n in graphs.nodes) == 2
    assert sum(n > 10 for n in graphs.nodes) == 2


def test_a_whole_behind_a_model_s_hook(graphs: Graphs) -> None:
    model = sdxl_unet()
    model_offload(model)
    assert "model CPU offloading moves it before a call" in compile_pipeline(model).parts[0].detail


def test_a_vae_behind_a_model_s_hook(graphs: Graphs) -> None:
    vae = image_vae()
    model_offload(vae)
    report = compile_pipeline(vae)
    assert len(report.compiled) == 2
    assert report.parts[0].detail == "static shapes; model CPU offloading moves it before a call"


def test_a_device_map_with_hooks_at_each_layer(graphs: Graphs) -> None:
    vae = image_vae()
    device_map(vae)
    assert [p.detail for p in compile_pipeline(vae).parts] == [DEVICE_MAP, DEVICE_MAP]


def test_hooks_on_blocks_make_it_compile_by_blocks(graphs: Graphs) -> None:
    """At 64 % the tiny model would be compiled whole, in a graph that breaks at each
    block's hook.
    """
    for offload in (by_block, first_block_cache):
        model = flux(2)
        offload(model)
        report = compile_pipeline(model)
        assert report.parts[0].detail.startswith("4 blocks one by one")
        assert model._compiled_call_impl is None


def test_a_denoiser_whose_layers_are_spread_over_devices(graphs: Graphs) -> None:
    """As device_map="auto" spreads one over GPUs, with each layer hooked."""
    model = flux()
    device_map(model)
    report = compile_pipeline(model)
    assert report.compiled == []
    assert all(DEVICE_MAP in part.detail for part in report.parts)
