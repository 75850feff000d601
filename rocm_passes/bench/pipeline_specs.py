# ruff: noqa: C408 (configs and call arguments are keyword arguments, and read as such)
"""Diffusers pipelines of production size, from configs: no checkpoint is downloaded.

Text encoders are left out: prompt embeddings are passed to the call. `tiny` has the same classes
with small configs, for trying the benchmark on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rocm_passes.bench.models import production
from rocm_passes.bench.pipeline_spec import (
    BY_GRAPHS,
    EULER,
    ONE_ENCODER,
    TWO_ENCODERS,
    Spec,
    video,
)
from rocm_passes.bench.pipeline_spec import embeddings as _embeds
from rocm_passes.bench.pipeline_specs_video import cogvideox, hunyuan_video, ltx, wan22_5b
from rocm_passes.bench.vae_models import FLUX_VAE, IMAGE_VAE


def _image_vae(config: Mapping[str, Any], tiny: bool, **more: Any) -> tuple[str, dict[str, Any]]:
    small = dict(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)
    sample_size = 64 if tiny else 1024
    return "AutoencoderKL", {
        **config, **(small if tiny else {}), "sample_size": sample_size, **more
    }  # fmt: skip


def _flux_vae(tiny: bool) -> tuple[str, dict[str, Any]]:
    return _image_vae(FLUX_VAE, tiny, scaling_factor=0.3611, shift_factor=0.1159)


def _video_vae(source: str, tiny: bool) -> tuple[str, dict[str, Any]]:
    config = production("vae_wan")
    small = dict(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    return source, {**config, **(small if tiny else {})}


def _size(pixels: int) -> dict[str, int]:
    return dict(height=pixels, width=pixels)


def sdxl(tiny: bool) -> Spec:
    unet = dict(
        sample_size=8 if tiny else 128,
        block_out_channels=(16, 32, 64) if tiny else (320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1 if tiny else 2,
        transformer_layers_per_block=1 if tiny else [1, 2, 10],
        attention_head_dim=[2, 4, 8] if tiny else [5, 10, 20],
        cross_attention_dim=24 if tiny else 2048,
        norm_num_groups=8 if tiny else 32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8 if tiny else 256,
        projection_class_embeddings_input_dim=6 * 8 + 16 if tiny else 2816,
    )
    width, pooled = (24, 16) if tiny else (2048, 1280)
    return Spec(
        name="sdxl",
        pipeline="StableDiffusionXLPipeline",
        denoiser="unet",
        parts=dict(
            unet=("UNet2DConditionModel", unet),
            vae=_image_vae(IMAGE_VAE, tiny, latent_channels=4, scaling_factor=0.13025),
        ),
        scheduler=EULER,
        none=TWO_ENCODERS,
        call=lambda normal: _size(64 if tiny else 1024) | _embeds(normal, 77, width, pooled),
        steps=8,
        note="SDXL, 1024 px, 8 steps, guidance",
        forms=BY_GRAPHS,
        weights_gib=5.2, peak_gib=4.5, eager_s=1.0, compile_s=90,
    )  # fmt: skip


def sd15(tiny: bool) -> Spec:
    unet = dict(
        sample_size=8 if tiny else 64,
        block_out_channels=(16, 32, 32, 32) if tiny else (320, 640, 1280, 1280),
        layers_per_block=1 if tiny else 2,
        attention_head_dim=4 if tiny else 8,
        cross_attention_dim=24 if tiny else 768,
        norm_num_groups=8 if tiny else 32,
    )
    return Spec(
        name="sd15",
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        parts=dict(
            unet=("UNet2DConditionModel", unet),
            vae=_image_vae(IMAGE_VAE, tiny, latent_channels=4),
        ),
        scheduler=EULER,
        none=(*ONE_ENCODER, "safety_checker", "feature_extractor"),
        init=dict(requires_safety_checker=False),
        call=lambda normal: _size(64 if tiny else 512) | _embeds(normal, 77, 24 if tiny else 768),
        steps=8,
        note="SD 1.5, 512 px, 8 steps, guidance",
        forms=BY_GRAPHS,
        weights_gib=1.8, peak_gib=4.0, eager_s=0.5, compile_s=80,
    )  # fmt: skip


def wan(tiny: bool) -> Spec:
    config = production("wan_block") | dict(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    small = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
    )
    size = video(*((32, 32, 5) if tiny else (480, 832, 33)))
    return Spec(
        name="wan",
        pipeline="WanPipeline",
        parts=dict(
            transformer=("WanTransformer3DModel", config | (small if tiny else {})),
            vae=_video_vae("AutoencoderKLWan", tiny),
        ),
        none=ONE_ENCODER,
        call=lambda normal: size | _embeds(normal, 512 if not tiny else 7, 32 if tiny else 4096),
        steps=4,
        forwards=2,
        note="Wan 2.1 1.3B, 832x480, 33 frames, 4 steps, guidance",
        weights_gib=3.0, peak_gib=8.0, eager_s=2.4, compile_s=75,
    )  # fmt: skip


def z_image(tiny: bool) -> Spec:
    config = production("z_image_block")
    small = dict(dim=48, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=32,
                 axes_dims=[4, 6, 6], axes_lens=[64, 32, 32])  # fmt: skip
    return Spec(
        name="z_image",
        pipeline="ZImagePipeline",
        parts=dict(
            transformer=("ZImageTransformer2DModel", config | (small if tiny else {})),
            vae=_flux_vae(tiny)
        ),
        none=ONE_ENCODER,
        call=lambda normal: (
            _size(64 if tiny else 1024)
            | dict(prompt_embeds=[normal(32, 32) if tiny else normal(128, 2560)],
            guidance_scale=0.0)
        ),
        steps=8,
        note="Z-Image-Turbo, 1024 px, 8 steps",
        weights_gib=12.5, peak_gib=5.0, eager_s=1.4, compile_s=70,
    )  # fmt: skip


def flux(tiny: bool) -> Spec:
    small = dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=3,
                 joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6,
                 6))  # fmt: skip
    config = production("flux_double") | (small if tiny else {})
    # Even, so that two ranks can share the tokens.
    embeds = (8, 32, 32) if tiny else (512, 4096, 768)
    return Spec(
        name="flux",
        pipeline="FluxPipeline",
        parts=dict(transformer=("FluxTransformer2DModel", config), vae=_flux_vae(tiny)),
        none=TWO_ENCODERS,
        call=lambda normal: _size(64 if tiny else 1024) | _embeds(normal, *embeds, guided=False),
        steps=4,
        note="FLUX.1-dev, 1024 px, 4 steps",
        forms=("eager", "blocks", "blocks+vae", "ours"),
        weights_gib=24.0, peak_gib=4.5, eager_s=0.9, compile_s=60,
    )  # fmt: skip


def qwen_image(tiny: bool) -> Spec:
    config = production("qwen_image_block")
    small = dict(num_layers=1, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=32,
                 axes_dims_rope=(4, 6, 6))  # fmt: skip
    tokens, width = (8, 32) if tiny else (512, 3584)
    return Spec(
        name="qwen_image",
        pipeline="QwenImagePipeline",
        parts=dict(
            transformer=("QwenImageTransformer2DModel", config | (small if tiny else {})),
            vae=_video_vae("AutoencoderKLQwenImage", tiny),
        ),
        none=ONE_ENCODER,
        call=lambda normal: (
            _size(64 if tiny else 1024)
            | dict(
                prompt_embeds=normal(1, tokens, width),
                prompt_embeds_mask=torch.ones(1, tokens, dtype=torch.int64),
                true_cfg_scale=1.0,
            )
        ),
        steps=4,
        note="Qwen-Image, 1024 px, 4 steps",
        forms=("eager", "blocks", "blocks+vae", "ours"),
        weights_gib=39.0, peak_gib=8.0, eager_s=1.6, compile_s=60,
    )  # fmt: skip


def sd35(tiny: bool) -> Spec:
    config = dict(
        sample_size=8 if tiny else 128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2 if tiny else 24,
        attention_head_dim=16 if tiny else 64,
        num_attention_heads=2 if tiny else 24,
        joint_attention_dim=32 if tiny else 4096,
        caption_projection_dim=32 if tiny else 1536,
        pooled_projection_dim=64 if tiny else 2048,
        pos_embed_max_size=24 if tiny else 384,
        dual_attention_layers=(0,) if tiny else tuple(range(13)),
        qk_norm="rms_norm",
    )
    embeds = (9, 32, 64) if tiny else (333, 4096, 2048)
    return Spec(
        name="sd35",
        pipeline="StableDiffusion3Pipeline",
        parts=dict(transformer=("SD3Transformer2DModel", config), vae=_flux_vae(tiny)),
        none=(*TWO_ENCODERS, "text_encoder_3", "tokenizer_3"),
        call=lambda normal: _size(64 if tiny else 1024) | _embeds(normal, *embeds),
        steps=4,
        note="SD 3.5 medium, 1024 px, 4 steps, guidance",
        weights_gib=5.2, peak_gib=6.0, eager_s=1.0, compile_s=70,
        # SD3Transformer2DModel declares no repeated blocks.
        forms=("eager", "whole+vae", "ours"),
    )  # fmt: skip


PIPELINES: Mapping[str, Callable[[bool], Spec]] = {
    made.__name__: made
    for made in (
        sdxl,
        wan,
        z_image,
        flux,
        sd15,
        sd35,
        qwen_image,
        wan22_5b,
        hunyuan_video,
        ltx,
        cogvideox,
    )
}
