# ruff: noqa: C408 (configs are keyword arguments, and read as such)
"""What rocm_passes.bench.distributed measures: denoisers of pipelines, and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rocm_passes.bench.pipeline_models import arguments, build, caller, inputs_of_denoiser
from rocm_passes.bench.pipeline_spec import Spec
from rocm_passes.bench.pipeline_specs import PIPELINES

CONTEXT = ("one", "ulysses", "ring", "fsdp")


@dataclass(frozen=True)
class Case:
    """A pipeline's denoiser, with the inputs that the pipeline gives it in its first step.

    config, tiny: changes to the denoiser's config; call: to the call's arguments. layers: blocks,
    where the whole would not fit beside its compiled copies.
    """

    name: str
    pipeline: str
    splits: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    layers: int | None = None

    def spec(self, tiny: bool, layers: int | None) -> Spec:
        spec = PIPELINES[self.pipeline](tiny)
        cls, config = spec.parts[spec.denoiser]
        changes: dict[str, Any] = dict(self.tiny if tiny else self.config)
        count = layers or (None if tiny else self.layers)
        if count is not None:
            names = [n for n in ("num_layers", "num_single_layers") if n in config]
            changes |= dict.fromkeys(names, count)
        parts = {**spec.parts, spec.denoiser: (cls, {**config, **changes})}
        return replace(spec, parts=parts)

    def build(
        self, device: torch.device, dtype: torch.dtype, tiny: bool, layers: int | None
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The denoiser and its inputs, the same on each rank."""
        spec = self.spec(tiny, layers)
        pipe, _ = build(spec, device, dtype)
        denoiser: nn.Module = getattr(pipe, spec.denoiser)
        given = arguments(spec, device, dtype) | (dict(self.call) if not tiny else {})
        args, inputs = inputs_of_denoiser(denoiser, caller(pipe, spec, given))
        assert not args, "diffusers' pipelines call their denoisers by keyword"
        return denoiser, inputs


class Blocks(nn.Module):
    """One behind the other. (Dynamo would compile the members of an nn.Sequential one by one.)"""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True)
class Decoder(Case):
    """The last, largest block of Wan's decoder on one chunk of four frames: 96 channels."""

    def build(
        self, device: torch.device, dtype: torch.dtype, tiny: bool, layers: int | None
    ) -> tuple[nn.Module, dict[str, Any]]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

        channels, rows, columns = (4, 8, 6) if tiny else (96, 720, 1280)
        torch.manual_seed(0)
        blocks = Blocks([WanResidualBlock(channels, channels) for _ in range(layers or 3)])
        model = blocks.eval().requires_grad_(False).to(device, dtype)
        x = torch.randn(1, channels, 4, rows, columns, generator=torch.Generator().manual_seed(1))
        return model, {"x": x.to(device, dtype)}


CASES: tuple[Case, ...] = (
    Case("wan_1.3b", "wan", CONTEXT, tiny=dict(num_attention_heads=4, attention_head_dim=16)),
    Case(
        "wan_14b", "wan", CONTEXT, layers=4,
        config=dict(num_attention_heads=40, ffn_dim=13824),
        tiny=dict(num_attention_heads=4, attention_head_dim=16),
        call=dict(height=720, width=1280, num_frames=81),
    ),
    Case("flux", "flux", ("one", "ulysses"), layers=8, tiny=dict(num_attention_heads=4)),
    Case(
        "qwen_image", "qwen_image", ("one", "ulysses"), layers=8,
        tiny=dict(num_attention_heads=4),
    ),
    Decoder("wan_decoder", "", ("one", "rows")),
)  # fmt: skip
