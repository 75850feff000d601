# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Tiny video and image autoencoders, decoding."""

from __future__ import annotations

from .case import Case

WAN = Case(
    name="vae_wan",
    source="diffusers:AutoencoderKLWan",
    config=dict(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ),
    feed=lambda draw: dict(z=draw.normal(1, 4, 3, 4, 5), return_dict=False),
    entry="decode",
    # Per latent frame: 2 resnets in the middle and 2 in each of 4 blocks, each with two norms and two
    # convolutions; the attention's and the output's norm; convolutions in and out; 2 shortcuts where an
    # upsampler had halved the channels. Two temporal upsamplers skip the first frame. Once: post_quant_conv.
    expected={"conv3d": 1 + 3 * (2 * 10 + 2 + 2) + 2 * 2, "channel_norm": 3 * (2 * 10 + 2)},
)

VAES: tuple[Case, ...] = (WAN,)
