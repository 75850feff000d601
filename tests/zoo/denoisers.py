# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""The four tiny denoising transformers of the main job. Comments count idioms per block."""

from __future__ import annotations

import torch

from rocm_passes.bench.inputs import grid_ids, timestep

from .case import Case

WAN_LAYERS = 2
WAN = Case(
    name="wan",
    source="diffusers:WanTransformer3DModel",
    config=dict(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=96,
        num_layers=WAN_LAYERS,
        rope_max_seq_len=32,
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 16, 3, 8, 10),
        timestep=timestep(),
        encoder_hidden_states=draw.normal(1, 12, 32),
        return_dict=False,
    ),
    # RMSNorm on q and k of self- and of cross-attention, LayerNorm 1-3, rotation of
    # self-attention's q and k; once more the output LayerNorm and the patch embedding.
    expected={
        "attention": 2 * WAN_LAYERS,
        "conv3d": 1,
        "rms_norm": 4 * WAN_LAYERS,
        "layer_norm": 3 * WAN_LAYERS + 1,
        "rotary": 2 * WAN_LAYERS,
    },
)

Z_IMAGE_LAYERS, Z_IMAGE_REFINERS = 2, 1
Z_IMAGE = Case(
    name="z_image",
    source="diffusers:ZImageTransformer2DModel",
    config=dict(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=48,
        n_layers=Z_IMAGE_LAYERS,
        n_refiner_layers=Z_IMAGE_REFINERS,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 8, 8],
        axes_lens=[256, 32, 32],
    ),
    feed=lambda draw: dict(
        x=[draw.normal(16, 1, 8, 16)],
        t=torch.tensor([0.5]),
        cap_feats=[draw.normal(12, 32)],
        return_dict=False,
    ),
    # Four hidden norms, q and k norms, two rotations per block; noise and context refiners are such
    # blocks. Once more the caption norm and the final LayerNorm.
    expected={
        "attention": Z_IMAGE_LAYERS + 2 * Z_IMAGE_REFINERS,
        "rms_norm": 6 * (Z_IMAGE_LAYERS + 2 * Z_IMAGE_REFINERS) + 1,
        "layer_norm": 1,
        "rotary": 2 * (Z_IMAGE_LAYERS + 2 * Z_IMAGE_REFINERS),
    },
    warm_up=True,
)

QWEN_LAYERS = 2
QWEN_IMAGE = Case(
    name="qwen_image",
    source="diffusers:QwenImageTransformer2DModel",
    config=dict(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=QWEN_LAYERS,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    ),
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 30, 16),
        encoder_hidden_states=draw.normal(1, 7, 24),
        encoder_hidden_states_mask=None,
        timestep=torch.tensor([0.5], dtype=draw.dtype),
        img_shapes=[(1, 5, 6)],
        return_dict=False,
    ),
    # Two streams, each with q and k norms, two LayerNorms, q and k rotations.
    # Once more the text norm and the output norm.
    expected={
        "attention": QWEN_LAYERS,
        "rms_norm": 4 * QWEN_LAYERS + 1,
        "layer_norm": 4 * QWEN_LAYERS + 1,
        "rotary": 4 * QWEN_LAYERS,
    },
    # The text stream ends with the last block: its second LayerNorm feeds nothing.
    dead={"layer_norm": 1},
)

FLUX_DOUBLE, FLUX_SINGLE = 1, 2
FLUX = Case(
    name="flux",
    source="diffusers:FluxTransformer2DModel",
    config=dict(
        patch_size=1,
        in_channels=16,
        num_layers=FLUX_DOUBLE,
        num_single_layers=FLUX_SINGLE,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    ),
    # A guidance of 4 is exact in bfloat16 even after the model's factor of 1000, as 3.5 is not:
    # rounding the conditioning would hide every other error.
    feed=lambda draw: dict(
        hidden_states=draw.normal(1, 30, 16),
        encoder_hidden_states=draw.normal(1, 7, 32),
        pooled_projections=draw.normal(1, 32),
        timestep=torch.tensor([0.5], dtype=draw.dtype),
        guidance=torch.tensor([4.0]),
        img_ids=grid_ids(5, 6),
        txt_ids=torch.zeros(7, 3),
        return_dict=False,
    ),
    # Double: q and k norms and two LayerNorms for each stream; single: q and k norms and one
    # LayerNorm. The streams are joined before the rotation, so each block rotates q and k once.
    # Once more the output norm.
    expected={
        "attention": FLUX_DOUBLE + FLUX_SINGLE,
        "rms_norm": 4 * FLUX_DOUBLE + 2 * FLUX_SINGLE,
        "layer_norm": 4 * FLUX_DOUBLE + FLUX_SINGLE + 1,
        "rotary": 2 * (FLUX_DOUBLE + FLUX_SINGLE),
    },
)

MAIN_DENOISERS = (WAN, Z_IMAGE, QWEN_IMAGE, FLUX)
