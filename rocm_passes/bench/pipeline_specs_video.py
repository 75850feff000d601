# ruff: noqa: C408 (configs and call arguments are keyword arguments, and read as such)
"""Video pipelines beside Wan 2.1 (pipeline_specs.py): HunyuanVideo, LTX, CogVideoX, Wan 2.2 5B."""

from __future__ import annotations

import torch

from rocm_passes.bench.models import production
from rocm_passes.bench.pipeline_spec import ONE_ENCODER, TWO_ENCODERS, Spec, video
from rocm_passes.bench.pipeline_spec import embeddings as _embeds


def _tiny_vae(kind: str, channels: int, groups: int) -> dict[str, object]:
    return dict(
        latent_channels=channels,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=groups,
        down_block_types=(f"{kind}DownBlock3D",) * 4,
        up_block_types=(f"{kind}UpBlock3D",) * 4,
    )


def hunyuan_video(tiny: bool) -> Spec:
    config = production("hunyuan_video_double")
    small = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
                 num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=16,
                 pooled_projection_dim=8, rope_axes_dim=(4, 6, 6))  # fmt: skip
    vae = _tiny_vae("HunyuanVideo", 4, 4) if tiny else production("vae_hunyuan_video")
    tokens, width, pooled = (7, 16, 8) if tiny else (256, 4096, 768)
    size = video(*((32, 48, 5) if tiny else (544, 960, 33)))
    return Spec(
        name="hunyuan_video",
        pipeline="HunyuanVideoPipeline",
        parts=dict(
            transformer=("HunyuanVideoTransformer3DModel", config | (small if tiny else {})),
            vae=("AutoencoderKLHunyuanVideo", vae),
        ),
        none=TWO_ENCODERS,
        call=lambda normal: (
            size
            | _embeds(normal, tokens, width, pooled, guided=False)
            | dict(prompt_attention_mask=torch.ones(1, tokens, dtype=torch.int64))
        ),
        steps=4,
        note="HunyuanVideo, 960x544, 33 frames, 4 steps",
        forms=("eager", "blocks", "blocks+vae", "ours"),
        weights_gib=25.0, peak_gib=22.0, eager_s=8.0, compile_s=90,
    )  # fmt: skip


def ltx(tiny: bool) -> Spec:
    small = dict(in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
                 cross_attention_dim=32, num_layers=2, caption_channels=16)  # fmt: skip
    small_vae = dict(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    tokens, width = (9, 16) if tiny else (128, 4096)
    size = video(*((64, 64, 9) if tiny else (512, 704, 161)))
    masks = ("prompt_attention_mask", "negative_prompt_attention_mask")
    return Spec(
        name="ltx",
        pipeline="LTXPipeline",
        parts=dict(
            transformer=(
                "LTXVideoTransformer3DModel", production("ltx_block") | (small if tiny else {})
            ),
            vae=("AutoencoderKLLTXVideo", small_vae if tiny else production("vae_ltx")),
        ),
        scheduler=("FlowMatchEulerDiscreteScheduler", dict(use_dynamic_shifting=True)),
        none=ONE_ENCODER,
        call=lambda normal: (
            size
            | _embeds(normal, tokens, width)
            | {mask: torch.ones(1, tokens, dtype=torch.bool) for mask in masks}
        ),
        steps=8,
        note="LTX-Video 2B, 704x512, 161 frames, 8 steps, guidance",
        weights_gib=5.5, peak_gib=10.0, eager_s=3.0, compile_s=80,
    )  # fmt: skip


def cogvideox(tiny: bool) -> Spec:
    full = dict(
        num_attention_heads=48,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        num_layers=42,
        sample_width=90,
        sample_height=60,
        sample_frames=49,
        use_rotary_positional_embeddings=True,
    )
    small = dict(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=8,
    )
    vae = _tiny_vae("CogVideoX", 4, 2) if tiny else production("vae_cogvideox")
    tokens, width = (8, 16) if tiny else (226, 4096)
    size = video(*((64, 64, 9) if tiny else (480, 720, 49)))
    return Spec(
        name="cogvideox",
        pipeline="CogVideoXPipeline",
        parts=dict(
            transformer=("CogVideoXTransformer3DModel", full | (small if tiny else {})),
            vae=("AutoencoderKLCogVideoX", vae),
        ),
        scheduler=("CogVideoXDDIMScheduler", dict(snr_shift_scale=1.0)),
        none=ONE_ENCODER,
        call=lambda normal: size | _embeds(normal, tokens, width),
        steps=4,
        note="CogVideoX 5B, 720x480, 49 frames, 4 steps, guidance",
        weights_gib=11.0, peak_gib=24.0, eager_s=6.0, compile_s=90,
    )  # fmt: skip


def wan22_5b(tiny: bool) -> Spec:
    config = production("wan_block") | dict(
        in_channels=48, out_channels=48, num_attention_heads=24, ffn_dim=14336, num_layers=30
    )
    small = dict(num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=16, ffn_dim=64,
                 num_layers=2)  # fmt: skip
    # The weights are random, so latents need no statistics of a checkpoint.
    neutral = dict(latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    vae = production("vae_wan22") | neutral
    small_vae = dict(base_dim=8, decoder_base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    size = video(*((64, 64, 5) if tiny else (704, 1280, 33)))
    return Spec(
        name="wan22_5b",
        pipeline="WanPipeline",
        parts=dict(
            transformer=("WanTransformer3DModel", config | (small if tiny else {})),
            vae=("AutoencoderKLWan", {**vae, **(small_vae if tiny else {})}),
        ),
        none=ONE_ENCODER,
        init=dict(expand_timesteps=True),
        call=lambda normal: size | _embeds(normal, 7 if tiny else 512, 32 if tiny else 4096),
        steps=4,
        forwards=2,
        note="Wan 2.2 TI2V 5B, 1280x704, 33 frames, 4 steps, guidance",
        weights_gib=11.0, peak_gib=14.0, eager_s=4.0, compile_s=90,
    )  # fmt: skip
