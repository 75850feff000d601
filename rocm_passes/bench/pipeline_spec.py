# ruff: noqa: C408 (configs and call arguments are keyword arguments, and read as such)
"""What a pipeline of the benchmark is: a Spec, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Normal = Callable[..., torch.Tensor]


#: eager, what diffusers' documentation advises, Inductor with static shapes, and this package.
BY_BLOCKS = ("eager", "blocks", "blocks+vae", "whole+vae", "ours")
#: A UNet is host-bound: CUDA graphs as well.
BY_GRAPHS = (
    "eager",
    "blocks+vae",
    "whole+vae",
    "whole+graphs",
    "ours",
    "ours+blocks",
    "ours+plain",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0))
EULER = (
    "EulerDiscreteScheduler",
    dict(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    ),
)


@dataclass(frozen=True, eq=False)
class Spec:
    """One pipeline: its classes, their configs, and one call of it.

    parts: attribute -> class name and config. call: from a drawer of normal tensors to the call's
    arguments. forwards: of the denoiser in one step. weights_gib, peak_gib: weights in bfloat16,
    and what a run adds to them: estimates, rounded up. eager_s, compile_s: of one call and one cold
    whole compile, for --plan.
    """

    name: str
    pipeline: str
    parts: Mapping[str, tuple[str, Mapping[str, Any]]]
    none: tuple[str, ...]
    call: Callable[[Normal], dict[str, Any]]
    steps: int
    note: str
    weights_gib: float
    peak_gib: float
    eager_s: float
    compile_s: float
    denoiser: str = "transformer"
    scheduler: tuple[str, Mapping[str, Any]] = FLOW
    forms: tuple[str, ...] = BY_BLOCKS
    forwards: int = 1
    init: Mapping[str, Any] = field(default_factory=dict)


TWO_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
ONE_ENCODER = ("text_encoder", "tokenizer")


def video(height: int, width: int, frames: int) -> dict[str, int]:
    return dict(height=height, width=width, num_frames=frames)


def embeddings(
    normal: Normal, tokens: int, width: int, pooled: int = 0, guided: bool = True
) -> dict[str, Any]:
    """Prompt embeddings, pooled ones where pooled > 0, and with guidance the negative ones."""
    found = {}
    for sign in ("", "negative_") if guided else ("",):
        found[f"{sign}prompt_embeds"] = normal(1, tokens, width)
        if pooled:
            found[f"{sign}pooled_prompt_embeds"] = normal(1, pooled)
    return found
