# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Tiny video and image autoencoders, decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .case import Case

WAN = Case(
    name="vae_wan",
    source="diffusers:AutoencoderKLWan",
    config=dict(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
    feed=lambda draw: dict(z=draw.normal(1, 4, 3, 4, 5), return_dict=False),
    entry="decode",
    # Per latent frame: 2 resnets in the middle and 2 in each of 4 blocks, each with two norms and
    # two convolutions; the attention's and the output's norm; convolutions in and out; 2 shortcuts
    # where an upsampler had halved the channels. Two temporal upsamplers skip the first frame.
    # Once: post_quant_conv.
    expected={
        "attention": 3,
        "conv3d": 1 + 3 * (2 * 10 + 2 + 2) + 2 * 2,
        "channel_norm": 3 * (2 * 10 + 2),
    },
)


#: Two levels in place of four: for tests of how chunks are compiled. No case of the zoo.
SMALL_WAN = replace(
    WAN,
    config={**WAN.config, "dim_mult": [1, 2], "temperal_downsample": [True]},
    expected=None,
)


def _decoder(
    name: str, source: str, config: dict[str, Any], latent: tuple[int, ...], **about: Any
) -> Case:
    """A VAE decoding a latent [B, C, H, W] or [B, C, T, H, W]."""
    return Case(
        name=name,
        source=f"diffusers:{source}",
        config=config,
        feed=lambda draw: dict(z=draw.normal(*latent), return_dict=False),
        entry="decode",
        **about,
    )


WAN22 = _decoder(
    "vae_wan22",
    "AutoencoderKLWan",
    dict(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
    (1, 4, 3, 4, 5),
    # As Wan 2.1, but a single shortcut: upsamplers keep the channels, and only the last block
    # halves them.
    expected={
        "attention": 3,
        "conv3d": 1 + 3 * (2 * 10 + 2 + 1) + 2 * 2,
        "channel_norm": 3 * (2 * 10 + 2),
    },
)

QWEN_IMAGE = _decoder(
    "vae_qwen_image",
    "AutoencoderKLQwenImage",
    dict(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
    (1, 4, 1, 4, 5),
    # The Wan decoder's first step.
    expected={"attention": 1, "conv3d": 1 + 2 * 10 + 2 + 2, "channel_norm": 2 * 10 + 2},
)

IMAGE = _decoder(
    "vae_image",
    "AutoencoderKL",
    dict(
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    (1, 4, 6, 8),
    # Resnets: 2 in the middle, 2 in each of 2 blocks, with two norms each; attention's and output's
    # norm.
    expected={"attention": 1, "group_norm": 2 * 6 + 2},
)

HUNYUAN_VIDEO = _decoder(
    "vae_hunyuan_video",
    "AutoencoderKLHunyuanVideo",
    dict(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    ),
    (1, 4, 3, 4, 5),
    # Resnets: 2 in the middle, 2 in each of 4 blocks, with two norms and two convolutions each;
    # attention's and output's norm; convolutions in, out, post_quant and of 3 upsamplers, all of
    # them causal but post_quant: a pad each.
    expected={
        "attention": 1,
        "conv3d": 2 * 10 + 3 + 3,
        "group_norm": 2 * 10 + 2,
        "pad": 2 * 10 + 2 + 3,
    },
)

HUNYUAN_VIDEO15 = _decoder(
    "vae_hunyuan_video15",
    "AutoencoderKLHunyuanVideo15",
    dict(
        latent_channels=8,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    ),
    (1, 8, 2, 4, 4),
    # As HunyuanVideo, without post_quant; the attention's q, k, v and output are convolutions, and
    # not causal.
    expected={
        "attention": 1,
        "conv3d": 2 * 10 + 2 + 3 + 4,
        "channel_norm": 2 * 10 + 2,
        "pad": 2 * 10 + 2 + 3,
    },
    one_graph=False,
    breaks="add_temporal_upsample is a numpy bool",
)

COGVIDEOX = _decoder(
    "vae_cogvideox",
    "AutoencoderKLCogVideoX",
    dict(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
    ),
    (1, 4, 4, 4, 4),
    # Two batches of frames, each through 8 resnets of two norms and two convolutions, the output's
    # norm, and convolutions in and out. Each norm is modulated by two convolutions.
    expected={"conv3d": 2 * (2 * 8 + 2 * (2 * 8 + 1) + 2), "group_norm": 2 * (2 * 8 + 1)},
)

LTX_CONFIG = dict(
    latent_channels=8,
    block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8, 8),
    layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1, 1),
    spatio_temporal_scaling=(True, True, False, False),
    decoder_spatio_temporal_scaling=(True, True, False, False),
    decoder_inject_noise=(False, False, False, False, False),
    patch_size=1,
    encoder_causal=True,
)
LTX = _decoder(
    "vae_ltx",
    "AutoencoderKLLTXVideo",
    LTX_CONFIG,
    (1, 8, 3, 4, 4),
    # Five resnets of two norms and two convolutions; output's norm; convolutions in, out and of 2
    # upsamplers.
    expected={"conv3d": 2 * 5 + 2 + 2, "rms_norm": 2 * 5 + 1},
)

LTX2 = _decoder(
    "vae_ltx2",
    "AutoencoderKLLTX2Video",
    dict(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(16, 32, 64),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        patch_size=1,
    ),
    (1, 8, 2, 4, 4),
    # Four resnets of two norms and two convolutions; output's norm; convolutions in, out and of 3
    # upsamplers, each reflecting its padding.
    expected={"conv3d": 2 * 4 + 2 + 3, "channel_norm": 2 * 4 + 1, "pad": 2 * 4 + 2 + 3},
)

MOCHI = _decoder(
    "vae_mochi",
    "AutoencoderKLMochi",
    dict(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=None,
        latents_std=None,
    ),
    (1, 4, 2, 3, 3),
)

COSMOS = _decoder(
    "vae_cosmos",
    "AutoencoderKLCosmos",
    dict(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decode_block_out_channels=(8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=8,
    ),
    (1, 4, 2, 4, 4),
)

MAGVIT = _decoder(
    "vae_magvit",
    "AutoencoderKLMagvit",
    dict(
        latent_channels=4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=["SpatialDownBlock3D"] + ["SpatialTemporalDownBlock3D"] * 3,
        up_block_types=["SpatialUpBlock3D"] + ["SpatialTemporalUpBlock3D"] * 3,
    ),
    (1, 4, 2, 4, 4),
)

ALLEGRO = Case(
    name="vae_allegro",
    source="diffusers:AutoencoderKLAllegro",
    config=dict(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=64,
    ),
    feed=lambda draw: dict(sample=draw.normal(1, 4, 2, 4, 4)),
    # Its decode insists on tiles of the production size; each tile goes through the decoder.
    entry="decoder",
)

TEMPORAL_DECODER = Case(
    name="vae_temporal_decoder",
    source="diffusers:AutoencoderKLTemporalDecoder",
    config=dict(
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
    ),
    feed=lambda draw: dict(z=draw.normal(3, 4, 6, 8), num_frames=3, return_dict=False),
    entry="decode",
    # Five resnets, each spatial (two norms) and temporal (two norms, two convolutions); the
    # output's norm and its temporal convolution.
    expected={"conv3d": 2 * 5 + 1, "group_norm": 4 * 5 + 1},
)

VAES = (
    WAN,
    WAN22,
    QWEN_IMAGE,
    IMAGE,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO15,
    COGVIDEOX,
    LTX,
    LTX2,
    MOCHI,
    COSMOS,
    MAGVIT,
    ALLEGRO,
    TEMPORAL_DECODER,
)
