# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Production-size workloads: one transformer block, or one VAE decode, with the inputs of a
pipeline.

A block's inputs are not written down here: its model is built at production width with a single
block, fed a latent of production size, and stopped at the block. So shapes, strides, dtypes, masks
and rotary tables are the model's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from rocm_passes.bench.inputs import Draw, grid_ids, randomise, timestep


@dataclass(frozen=True)
class Prepared:
    """A callable on a device with its inputs; `module` holds its weights."""

    module: nn.Module
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)


@dataclass(frozen=True, eq=False)
class Workload:
    """`config` is the production config, `single` what cuts it to one block, `block` that block's
    path.

    Without a block the workload is the model's `entry` itself. `note` says what size this is.
    """

    name: str
    source: str
    feed: Callable[[Draw], dict[str, Any]]
    config: Mapping[str, Any]
    single: Mapping[str, Any]
    block: str | None
    note: str
    entry: str = "forward"

    def build(
        self, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, seed: int = 0
    ) -> Prepared:
        """Random weights in `dtype` on `device`, less what the class keeps in float32, and random
        inputs.
        """
        cls = getattr(importlib.import_module("diffusers"), self.source)
        indices = [torch.device(device).index or 0] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=indices), torch.device(device):
            torch.manual_seed(seed)
            model = cls(**{**self.config, **self.single}).eval()
            if device != "meta":
                randomise(model)
        _cast_parameters(model, dtype)
        kwargs = tree_map_only(torch.Tensor, lambda t: t.to(device), self.feed(Draw(seed, dtype)))
        if self.block is None:
            return Prepared(model, getattr(model, self.entry), (), kwargs)
        block = model.get_submodule(self.block)
        args, kwargs = _stop_at(model, block, kwargs)
        return Prepared(block, block, args, kwargs)


def production(name: str) -> dict[str, Any]:
    """The full-size config of that workload's model. Raises KeyError listing the names
    there are.
    """
    return dict(workload(name).config)


def workload(name: str) -> Workload:
    """The workload of that name. Raises KeyError listing the names there are."""
    by_name = {w.name: w for w in WORKLOADS}
    if name not in by_name:
        raise KeyError(f"no workload {name!r}; there are {', '.join(by_name)}")
    return by_name[name]


class _Stopped(Exception):
    """Carries the inputs of the block at which the model was stopped."""


def _stop_at(
    model: nn.Module, block: nn.Module, kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Stopped(args, kwargs)

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**kwargs)
    except _Stopped as stopped:
        args, block_kwargs = stopped.args
        return args, block_kwargs
    finally:
        handle.remove()
    raise ValueError(f"{type(model).__name__} never reached the block")


def _cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """What from_pretrained(torch_dtype=dtype) does: buffers, and modules the class names, stay in
    float32.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


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


ONE_DOUBLE = dict(num_layers=1, num_single_layers=0)
ONE_SINGLE = dict(num_layers=0, num_single_layers=1)
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

WORKLOADS: tuple[Workload, ...] = (
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
