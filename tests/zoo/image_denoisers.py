# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Tiny image transformers beyond the main job's. Comments count idioms per block."""

from __future__ import annotations

import torch

from rocm_passes.bench.inputs import grid_ids, timestep

from .case import Case

FLUX2 = Case(
    name="flux2",
    source="diffusers:Flux2Transformer2DModel",
    config=dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 30, 16),
        encoder_hidden_states=draw.normal(1, 7, 32),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        guidance=torch.tensor([4.0]).to(draw.dtype),
        img_ids=grid_ids(5, 6, axes=4),
        txt_ids=torch.zeros(7, 4),
        return_dict=False,
    ),
    # As FLUX.1: double 4 RMSNorm, 4 LayerNorm, 2 rotations; single 2, 1 and 2. Once more the output
    # norm.
    expected={"attention": 3, "rms_norm": 4 + 2 * 2, "layer_norm": 4 + 2 + 1, "rotary": 2 + 2 * 2},
)

CHROMA = Case(
    name="chroma",
    source="diffusers:ChromaTransformer2DModel",
    config=dict(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 30, 8),
        encoder_hidden_states=draw.normal(1, 7, 32),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        img_ids=grid_ids(5, 6),
        txt_ids=torch.zeros(7, 3),
        return_dict=False,
    ),
    # Flux's blocks; one RMSNorm per layer of the approximator.
    expected={"attention": 2, "rms_norm": 4 + 2 + 1, "layer_norm": 4 + 1 + 1, "rotary": 2 + 2},
)

HIDREAM = Case(
    name="hidream",
    source="diffusers:HiDreamImageTransformer2DModel",
    config=dict(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        timesteps=timestep(),
        encoder_hidden_states_t5=draw.normal(1, 5, 32),
        encoder_hidden_states_llama3=draw.normal(2, 1, 5, 16),
        pooled_embeds=draw.normal(1, 64),
        return_dict=False,
    ),
    # Double 4 LayerNorm and 4 RMSNorm, single 2 and 2, each rotating q and k. Once more the output
    # norm.
    expected={"attention": 2, "rms_norm": 4 + 2, "layer_norm": 4 + 2 + 1, "rotary": 2 + 2},
    one_graph=False,
    breaks="the mixture of experts counts its tokens with bincount",
)

LUMINA2 = Case(
    name="lumina2",
    source="diffusers:Lumina2Transformer2DModel",
    config=dict(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=32,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        encoder_hidden_states=draw.normal(1, 16, 32),
        encoder_attention_mask=torch.ones(1, 16, dtype=torch.bool),
        return_dict=False,
    ),
    # Four hidden norms, q and k norms, two rotations, in refiners (noise, caption) too. Once more
    # the caption norm and the output LayerNorm.
    expected={"attention": 4, "rms_norm": 6 * (2 + 2) + 1, "layer_norm": 1, "rotary": 2 * (2 + 2)},
    one_graph=False,
    breaks="caption lengths are read off the mask with tolist",
)

SD35 = Case(
    name="sd35",
    source="diffusers:SD3Transformer2DModel",
    config=dict(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        encoder_hidden_states=draw.normal(1, 9, 32),
        pooled_projections=draw.normal(1, 64),
        timestep=timestep(),
        return_dict=False,
    ),
    # Two LayerNorms and q and k norms for each stream; the dual block's second attention has its
    # own q and k norms but shares a LayerNorm; the last block's text has one LayerNorm only. Once
    # more the output norm.
    expected={"attention": 4, "rms_norm": 4 * 3 + 2, "layer_norm": 4 * 3 - 1 + 1},
)

SANA = Case(
    name="sana",
    source="diffusers:SanaTransformer2DModel",
    config=dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=16,
        qk_norm="rms_norm_across_heads",
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        encoder_hidden_states=draw.normal(1, 8, 12),
        timestep=timestep(),
        return_dict=False,
    ),
    # Two LayerNorms; q and k norms of self- and of cross-attention. Once more caption norm and
    # output norm.
    expected={"attention": 2, "rms_norm": 4 * 2 + 1, "layer_norm": 2 * 2 + 1},
)

AURAFLOW = Case(
    name="auraflow",
    source="diffusers:AuraFlowTransformer2DModel",
    config=dict(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        encoder_hidden_states=draw.normal(1, 9, 32),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        return_dict=False,
    ),
    # Double: 4 hidden LayerNorms, q and k LayerNorms for both streams; single: 2 and 2. No output
    # norm.
    expected={"attention": 2, "layer_norm": 8 + 4},
)

OMNIGEN_TEXT = 8
OMNIGEN_SEQUENCE = OMNIGEN_TEXT + 1 + 64  # text, one time token, patches
OMNIGEN = Case(
    name="omnigen",
    source="diffusers:OmniGenTransformer2DModel",
    config=dict(
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=100,
        time_step_dim=8,
        rope_scaling={"long_factor": [1.0, 1.1, 1.2, 1.3], "short_factor": [1.0, 1.1, 1.2, 1.3]},
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 4, 16, 16),
        timestep=torch.tensor([0.5]).to(draw.dtype),
        input_ids=draw.tokens(1, OMNIGEN_TEXT, high=100),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(1, OMNIGEN_SEQUENCE, OMNIGEN_SEQUENCE),
        position_ids=torch.arange(OMNIGEN_SEQUENCE)[None],
        return_dict=False,
    ),
    # Two norms, two rotations. Once more the last norm and the output LayerNorm.
    expected={"attention": 2, "rms_norm": 2 * 2 + 1, "layer_norm": 1, "rotary": 2 * 2},
    one_graph=False,
    breaks="the rotary embedding branches on the sequence length, a tensor",
)

IMAGE_DENOISERS = (FLUX2, CHROMA, HIDREAM, LUMINA2, SD35, SANA, AURAFLOW, OMNIGEN)
