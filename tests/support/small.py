# ruff: noqa: C408 (configs are keyword arguments, and read as such)
"""Image pipelines of fewer levels than the tiny ones of the benchmark.

What a cell costs is tracing and rewriting each level of a UNet and a VAE. Two levels have every
kind of block, and the ways between levels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rocm_passes.bench.pipeline_spec import Spec

IMAGE_VAE = dict(
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": dict(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[2, 4],
    ),
    "sd15": dict(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}


def small(spec: Spec) -> Spec:
    parts = dict(spec.parts)
    for name, (cls, config) in parts.items():
        if cls == "AutoencoderKL":
            parts[name] = (cls, {**config, **IMAGE_VAE})
        if spec.name in UNETS and cls == "UNet2DConditionModel":
            parts[name] = (cls, {**config, **UNETS[spec.name]})
    return replace(spec, parts=parts)
