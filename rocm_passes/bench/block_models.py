# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Transformer blocks of production size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rocm_passes.bench.inputs import Draw, grid_ids, timestep
from rocm_passes.bench.workload import Workload


def _wan(name: str, frames: int, height: int, width: int, note: str) -> Workload:
    return Workload(
        name=name,
        source="WanTransformer3DModel",
        config=dict(
            patch_size=(1, 2, 2),
            num_attention_heads=40,
            attention_head_dim=128,
            in_channels=16,
            out_channels=16,
            text_dim=4096,
            freq_dim=256,
            ffn_dim=13824,
            num_layers=40,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            eps=1e-6,
            rope_max_seq_len=1024,
        ),
        single=dict(num_layers=1),
        block="blocks.0",
        feed=lambda draw: dict(
            hidden_states=draw.normal(1, 16, frames, height, width),
            timestep=timestep(),
            encoder_hidden_states=draw.normal(1, 512, 4096),
        ),
        note=note,
    )


def _flux_inputs(draw: Draw, in_channels: int, text_channels: int, axes: int) -> dict[str, Any]:
    """1024 px: 64 x 64 packed latents; 512 text tokens."""
    return dict(
        hidden_states=draw.normal(1, 4096, in_channels),
        encoder_hidden_states=draw.normal(1, 512, text_channels),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        guidance=torch.tensor([3.5]).to(draw.dtype),
        img_ids=grid_ids(64, 64, axes),
        txt_ids=torch.zeros(512, axes),
    )


def _flux(name: str, single: Mapping[str, Any], block: str) -> Workload:
    return Workload(
        name=name,
        source="FluxTransformer2DModel",
        config=dict(
            patch_size=1,
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
            axes_dims_rope=(16, 56, 56),
        ),
        single=single,
        block=block,
        feed=lambda draw: (
            _flux_inputs(draw, 64, 4096, 3) | dict(pooled_projections=draw.normal(1, 768))
        ),
        note="FLUX.1-dev, 1024 px: 4096 + 512 tokens",
    )


def _flux2(name: str, single: Mapping[str, Any], block: str) -> Workload:
    return Workload(
        name=name,
        source="Flux2Transformer2DModel",
        config=dict(
            patch_size=1,
            in_channels=128,
            num_layers=8,
            num_single_layers=48,
            attention_head_dim=128,
            num_attention_heads=48,
            joint_attention_dim=15360,
            timestep_guidance_channels=256,
            mlp_ratio=3.0,
            axes_dims_rope=(32, 32, 32, 32),
            rope_theta=2000,
            eps=1e-6,
            guidance_embeds=True,
        ),
        single=single,
        block=block,
        feed=lambda draw: _flux_inputs(draw, 128, 15360, 4),
        note="FLUX.2-dev, 1024 px: 4096 + 512 tokens",
    )


def _hunyuan_video(name: str, single: Mapping[str, Any], block: str) -> Workload:
    return Workload(
        name=name,
        source="HunyuanVideoTransformer3DModel",
        config=dict(
            in_channels=16,
            out_channels=16,
            num_attention_heads=24,
            attention_head_dim=128,
            num_layers=20,
            num_single_layers=40,
            num_refiner_layers=2,
            mlp_ratio=4.0,
            patch_size=2,
            patch_size_t=1,
            qk_norm="rms_norm",
            guidance_embeds=True,
            text_embed_dim=4096,
            pooled_projection_dim=768,
            rope_theta=256.0,
            rope_axes_dim=(16, 56, 56),
        ),
        single={**single, "num_refiner_layers": 1},
        block=block,
        feed=lambda draw: dict(
            hidden_states=draw.normal(1, 16, 33, 90, 160),
            timestep=timestep(),
            encoder_hidden_states=draw.normal(1, 256, 4096),
            encoder_attention_mask=torch.ones(1, 256, dtype=torch.int64),
            pooled_projections=draw.normal(1, 768),
            guidance=torch.tensor([6000.0]).to(draw.dtype),
        ),
        note="HunyuanVideo, 1280x720, 129 frames: 118800 + 256 tokens",
    )


Z_IMAGE = Workload(
    name="z_image_block",
    source="ZImageTransformer2DModel",
    config=dict(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=3840,
        n_layers=30,
        n_refiner_layers=2,
        n_heads=30,
        n_kv_heads=30,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=2560,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[32, 48, 48],
        axes_lens=[1024, 512, 512],
    ),
    single=dict(n_layers=1, n_refiner_layers=0),
    block="layers.0",
    feed=lambda draw: dict(
        x=[draw.normal(16, 1, 128, 128)], t=torch.tensor([0.5]), cap_feats=[draw.normal(512, 2560)]
    ),
    note="Z-Image-Turbo, 1024 px: 4096 + 512 tokens",
)

QWEN_IMAGE = Workload(
    name="qwen_image_block",
    source="QwenImageTransformer2DModel",
    config=dict(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=60,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=3584,
        axes_dims_rope=(16, 56, 56),
    ),
    single=dict(num_layers=1),
    block="transformer_blocks.0",
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4096, 64),
        encoder_hidden_states=draw.normal(1, 512, 3584),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        img_shapes=[(1, 64, 64)],
    ),
    note="Qwen-Image, 1024 px: 4096 + 512 tokens",
)

LTX = Workload(
    name="ltx_block",
    source="LTXVideoTransformer3DModel",
    config=dict(
        in_channels=128,
        out_channels=128,
        num_attention_heads=32,
        attention_head_dim=64,
        cross_attention_dim=2048,
        num_layers=28,
        caption_channels=4096,
    ),
    single=dict(num_layers=1),
    block="transformer_blocks.0",
    feed=lambda draw: dict(
        hidden_states=draw.normal(2, 7392, 128),
        encoder_hidden_states=draw.normal(2, 128, 4096),
        timestep=torch.tensor([500, 500]),
        encoder_attention_mask=torch.ones(2, 128, dtype=torch.bool),
        num_frames=21,
        height=16,
        width=22,
    ),
    note="LTX-Video 2B, 704x512, 161 frames: 7392 tokens, batch 2",
)


ONE_DOUBLE = dict(num_layers=1, num_single_layers=0)
ONE_SINGLE = dict(num_layers=0, num_single_layers=1)

BLOCKS: tuple[Workload, ...] = (
    _wan("wan_block", 21, 60, 104, "Wan 14B, 832x480, 81 frames: 32760 tokens"),
    _wan("wan_block_720p", 21, 90, 160, "Wan 14B, 1280x720, 81 frames: 75600 tokens"),
    Z_IMAGE,
    QWEN_IMAGE,
    _flux("flux_double", ONE_DOUBLE, "transformer_blocks.0"),
    _flux("flux_single", ONE_SINGLE, "single_transformer_blocks.0"),
    _flux2("flux2_double", ONE_DOUBLE, "transformer_blocks.0"),
    _flux2("flux2_single", ONE_SINGLE, "single_transformer_blocks.0"),
    _hunyuan_video("hunyuan_video_double", ONE_DOUBLE, "transformer_blocks.0"),
    _hunyuan_video("hunyuan_video_single", ONE_SINGLE, "single_transformer_blocks.0"),
    LTX,
)
