"""Tiny diffusers models from config, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn


def flux(layers: int = 1, heads: int = 3) -> Any:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def flux_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": draw(1, 16, 16),
        "encoder_hidden_states": draw(1, 4, 32),
        "pooled_projections": draw(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
        "return_dict": False,
    }


def wan(layers: int = 2) -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=64,
        num_layers=layers,
        rope_max_seq_len=32,
    ).eval()


def wan_inputs() -> dict[str, Any]:
    """Sixteen tokens of video, four of text."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": draw(1, 4, 4, 4, 4),
        "encoder_hidden_states": draw(1, 4, 32),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
    }


def wan_pipeline() -> Any:
    """Without encoders of text: it is called with embeddings."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(),
        transformer=wan(layers=1),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_vae(channels: int = 4) -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32,), norm_num_groups=8, latent_channels=channels, shift_factor=0.1
    ).eval()


def sdxl_unet() -> Any:
    """SDXL's structure: no attention at the highest resolution, several transformer blocks
    below.
    """
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 4, 8],
        cross_attention_dim=24,
        norm_num_groups=8,
        use_linear_projection=True,
    ).eval()


def unet_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, 5, 24, generator=generator),
        "return_dict": False,
    }


def classes(modules: list[nn.Module] | None) -> set[str]:
    return {type(m).__name__ for m in modules or []}
