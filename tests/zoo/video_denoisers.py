# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Tiny video transformers beyond Wan's text-to-video. Comments count idioms per block."""

from __future__ import annotations

from dataclasses import replace

import torch

from rocm_passes.bench.inputs import timestep

from .case import Case
from .denoisers import WAN, WAN_LAYERS

WAN_TI2V = replace(
    WAN,
    name="wan_ti2v",
    # A timestep for each of 3 x 4 x 5 tokens: scale, shift and gate are per token, as in Wan 2.2
    # TI2V-5B.
    feed=lambda draw: WAN.feed(draw) | dict(timestep=torch.arange(3 * 4 * 5)[None]),
)

WAN_I2V = replace(
    WAN,
    name="wan_i2v",
    config={**WAN.config, "image_dim": 20, "added_kv_proj_dim": 48},
    # The text must have 512 tokens: the attention splits the image's tokens off by that number.
    feed=lambda draw: (
        WAN.feed(draw)
        | dict(
            encoder_hidden_states=draw.normal(1, 512, 32),
            encoder_hidden_states_image=draw.normal(1, 5, 20),
        )
    ),
    # Besides text-to-video: a norm of the image's keys per block; once more two norms of the image
    # embedding.
    expected={
        "attention": 2 * 3,
        "conv3d": 1,
        "rms_norm": 5 * WAN_LAYERS,
        "layer_norm": 3 * WAN_LAYERS + 1 + 2,
        "rotary": 2 * WAN_LAYERS,
    },
)

HUNYUAN_VIDEO = Case(
    name="hunyuan_video",
    source="diffusers:HunyuanVideoTransformer3DModel",
    config=dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 3, 6, 8),
        timestep=timestep(),
        encoder_hidden_states=draw.normal(1, 7, 16),
        encoder_attention_mask=torch.ones(1, 7, dtype=torch.int64),
        pooled_projections=draw.normal(1, 8),
        guidance=torch.tensor([3.5]).to(draw.dtype),
        return_dict=False,
    ),
    # Double 4 RMSNorm, 4 LayerNorm, rotations of the video's q and k; single 2, 1 and 2; token
    # refiner 2 LayerNorm. Once more the output norm and the patch embedding.
    expected={
        "attention": 3,
        "conv3d": 1,
        "rms_norm": 4 + 2,
        "layer_norm": 4 + 1 + 2 + 1,
        "rotary": 2 + 2,
    },
)

LTX = Case(
    name="ltx",
    source="diffusers:LTXVideoTransformer3DModel",
    config=dict(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=16,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 2 * 4 * 5, 8),
        encoder_hidden_states=draw.normal(1, 9, 16),
        timestep=timestep(),
        encoder_attention_mask=torch.ones(1, 9, dtype=torch.bool),
        num_frames=2,
        height=4,
        width=5,
        return_dict=False,
    ),
    # Two hidden norms without weight, q and k norms of self- and cross-attention, two rotations.
    # Once more the output LayerNorm.
    expected={"attention": 2 * 2, "rms_norm": 6 * 2, "layer_norm": 1, "rotary": 2 * 2},
)

LTX2_CONFIG = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    cross_attention_dim=16,
    audio_in_channels=4,
    audio_out_channels=4,
    audio_num_attention_heads=2,
    audio_attention_head_dim=4,
    audio_cross_attention_dim=8,
    num_layers=1,
    caption_channels=16,
    rope_double_precision=False,
)


def _ltx2(name: str, rope_type: str) -> Case:
    return Case(
        name=name,
        source="diffusers:LTX2VideoTransformer3DModel",
        config=LTX2_CONFIG | dict(rope_type=rope_type),
        feed=lambda draw: dict(
            hidden_states=draw.normal(1, 2 * 4 * 4, 4),
            audio_hidden_states=draw.normal(1, 9, 4),
            encoder_hidden_states=draw.normal(1, 6, 16),
            audio_encoder_hidden_states=draw.normal(1, 6, 16),
            timestep=torch.tensor([[500.0]]).to(draw.dtype),
            encoder_attention_mask=torch.ones(1, 6, dtype=torch.bool),
            audio_encoder_attention_mask=torch.ones(1, 6, dtype=torch.bool),
            num_frames=2,
            height=4,
            width=4,
            audio_num_frames=9,
            fps=25.0,
            return_dict=False,
        ),
        # Eight hidden norms, q and k norms of six attentions, of which four rotate q and k. Once
        # more the two output LayerNorms.
        expected={"attention": 6, "rms_norm": 8 + 12, "layer_norm": 2, "rotary": 8},
    )


LTX2_SPLIT = _ltx2("ltx2", "split")
LTX2_INTERLEAVED = _ltx2("ltx2_interleaved", "interleaved")

COGVIDEOX = Case(
    name="cogvideox",
    source="diffusers:CogVideoXTransformer3DModel",
    config=dict(
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
        use_rotary_positional_embeddings=True,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 2, 4, 8, 8),
        encoder_hidden_states=draw.normal(1, 8, 16),
        timestep=timestep(),
        image_rotary_emb=_rotary_tables(2 * 4 * 4, 16),
        return_dict=False,
    ),
    # Two LayerNorms for each stream, q and k LayerNorms, two rotations. Once more two output norms.
    expected={"attention": 2, "layer_norm": 6 * 2 + 2, "rotary": 2 * 2},
)

MOCHI = Case(
    name="mochi",
    source="diffusers:MochiTransformer3DModel",
    config=dict(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        qk_norm="rms_norm",
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 2, 8, 8),
        encoder_hidden_states=draw.normal(1, 16, 16),
        timestep=timestep(),
        encoder_attention_mask=torch.ones(1, 16, dtype=torch.bool),
        return_dict=False,
    ),
    # Four hidden norms, q and k norms for each stream; the last block's text has one hidden norm
    # only. Once more the output LayerNorm.
    expected={"attention": 3, "rms_norm": 12 * 2 - 3, "layer_norm": 1, "rotary": 2 * 2},
)

COSMOS = Case(
    name="cosmos",
    source="diffusers:CosmosTransformer3DModel",
    # Without the padding mask, whose resizing needs torchvision.
    config=dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 2, 8, 8),
        timestep=timestep(),
        encoder_hidden_states=draw.normal(1, 12, 32),
        attention_mask=torch.ones(1, 12, dtype=torch.bool),
        fps=24,
        return_dict=False,
    ),
    # Three LayerNorms, q and k norms of self- and cross-attention, two rotations. Once
    # more the timestep's norm and the output's.
    expected={"attention": 2 * 2, "rms_norm": 4 * 2 + 1, "layer_norm": 3 * 2 + 1, "rotary": 2 * 2},
)

KANDINSKY5 = Case(
    name="kandinsky5",
    source="diffusers:Kandinsky5Transformer3DModel",
    config=dict(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=32,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 2, 8, 8, 4),
        encoder_hidden_states=draw.normal(1, 9, 16),
        timestep=timestep(500, torch.float32),
        pooled_projections=draw.normal(1, 8),
        visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)],
        text_rope_pos=torch.arange(9),
        return_dict=False,
    ),
    # Visual: 3 LayerNorms, q and k norms of self- and cross-attention; text: 2 and 2; each rotates
    # q and k once. Once more the norms of both text embeddings and the output.
    expected={
        "attention": 1 + 2 * 2,
        "rms_norm": 4 * 2 + 2,
        "layer_norm": 3 * 2 + 2 + 3,
        "rotary": 2 * 2 + 2,
    },
)

SKYREELS_V2 = Case(
    name="skyreels_v2",
    source="diffusers:SkyReelsV2Transformer3DModel",
    config=dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=64,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 2, 8, 8),
        timestep=timestep(),
        encoder_hidden_states=draw.normal(1, 7, 16),
        return_dict=False,
    ),
    expected={
        "attention": 2 * 2,
        "conv3d": 1,
        "rms_norm": 4 * 2,
        "layer_norm": 3 * 2 + 1,
        "rotary": 2 * 2,
    },
)


def _rotary_tables(tokens: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [tokens, channels] in float32, each angle twice, as the pipeline makes
    them.
    """
    frequencies = 100.0 ** -(torch.arange(0, channels, 2) / channels)
    angles = torch.outer(torch.arange(tokens), frequencies).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


VIDEO_DENOISERS = (
    WAN_TI2V,
    WAN_I2V,
    HUNYUAN_VIDEO,
    LTX,
    LTX2_SPLIT,
    LTX2_INTERLEAVED,
    COGVIDEOX,
    MOCHI,
    COSMOS,
    KANDINSKY5,
    SKYREELS_V2,
)
