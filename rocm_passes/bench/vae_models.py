# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""VAE decodes of production size."""

from __future__ import annotations

from typing import Any

from rocm_passes.bench.workload import Workload


def _vae(name: str, source: str, latent: tuple[int, ...], note: str, **config: Any) -> Workload:
    return Workload(
        name=name,
        source=source,
        config=config,
        single={},
        block=None,
        feed=lambda draw: dict(z=draw.normal(*latent), return_dict=False),
        note=note,
        entry="decode",
    )


WAN_VAE = dict(
    base_dim=96,
    z_dim=16,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    temperal_downsample=[False, True, True],
)
#: That of Wan 2.2 TI2V 5B, as diffusers' scripts/convert_wan_to_diffusers.py has it.
WAN22_VAE = dict(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    temperal_downsample=[False, True, True],
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=16,
    scale_factor_temporal=4,
)
#: The decoder of images: SD's, SDXL's and FLUX.1's, which differ in their latents.
IMAGE_VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
#: Its latents are 16 channels, without convolutions at their ends.
FLUX_VAE: dict[str, Any] = dict(
    **IMAGE_VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
)

DECODES: tuple[Workload, ...] = (
    _vae(
        "vae_wan",
        "AutoencoderKLWan",
        (1, 16, 5, 60, 104),
        "Wan 2.1, 832x480, 5 latent frames",
        **WAN_VAE,
    ),
    _vae(
        "vae_wan_720p",
        "AutoencoderKLWan",
        (1, 16, 5, 90, 160),
        "Wan 2.1, 1280x720, 5 latent frames",
        **WAN_VAE,
    ),
    _vae(
        "vae_wan22",
        "AutoencoderKLWan",
        (1, 48, 5, 44, 80),
        "Wan 2.2 5B, 1280x704, 5 latent frames",
        **WAN22_VAE,
    ),
    _vae(
        "vae_qwen_image",
        "AutoencoderKLQwenImage",
        (1, 16, 1, 166, 166),
        "Qwen-Image, 1328 px",
        **WAN_VAE,
    ),
    _vae(
        "vae_flux",
        "AutoencoderKL",
        (1, 16, 128, 128),
        "FLUX.1, 1024 px",
        **FLUX_VAE,
    ),
    _vae(
        "vae_hunyuan_video",
        "AutoencoderKLHunyuanVideo",
        (1, 16, 5, 32, 32),
        "HunyuanVideo, 256 px, 17 frames: temporal tiles of 5 and 2 latent frames",
        latent_channels=16,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    ),
    _vae(
        "vae_cogvideox",
        "AutoencoderKLCogVideoX",
        (1, 16, 5, 60, 90),
        "CogVideoX, 720x480, 5 latent frames",
        latent_channels=16,
        block_out_channels=(128, 256, 256, 512),
        layers_per_block=3,
    ),
    _vae(
        "vae_ltx",
        "AutoencoderKLLTXVideo",
        (1, 128, 9, 16, 22),
        "LTX-Video 0.9.0, 704x512, 9 latent frames",
        latent_channels=128,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=(4, 3, 3, 3, 4),
        decoder_layers_per_block=(4, 3, 3, 3, 4),
    ),
)
