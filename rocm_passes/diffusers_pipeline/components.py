"""What a component of a pipeline is, and so whether it pays to compile it: never decided by its
name.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from torch import nn

from rocm_passes.diffusers_pipeline import usage
from rocm_passes.diffusers_pipeline.compiled_before import unwrapped

DENOISER = "denoiser"
VAE = "vae"
#: Runs once a call like a VAE's decoder, on 3-D convolutions (latent upsamplers).
RESAMPLER = "resampler"
OTHER = "other"

#: A parameter of `forward` that holds the noise level: such a module runs at each denoising step.
NOISE_LEVEL = re.compile(r"t|r|sigmas?|.*timesteps?(_.*)?|.*_time")


@dataclass(frozen=True)
class Role:
    """kind: one of the four above; reason: of OTHER, why it is not compiled."""

    kind: str
    reason: str = ""


def role(name: str, component: nn.Module, pipeline: type | None) -> Role:
    """pipeline: the class whose source says how often it calls its component `name`; None: not
    known.
    """
    module = unwrapped(component)
    often = usage.how_often(pipeline, name) if pipeline is not None else usage.NOT_SEEN
    if is_vae(module):
        return Role(VAE)
    if is_of_transformers(module):
        return Role(OTHER, _of_transformers(module, often))
    if denoises(type(module)) or often == usage.EACH_STEP:
        return Role(DENOISER)
    if convolves_video(module):
        return Role(RESAMPLER)
    return Role(OTHER, _other(name, module, often, pipeline))


def is_vae(module: nn.Module) -> bool:
    """Whether `decode` and `encode` of the module call submodules that can be compiled."""
    parts = [w for w in ("decode", "encode") if callable(getattr(module, w, None))]
    return any(isinstance(getattr(module, f"{w}r", None), nn.Module) for w in parts)


def denoises(cls: type[nn.Module]) -> bool:
    """Whether `forward` takes a noise level, or the class declares repeated blocks to be
    compiled.
    """
    if getattr(cls, "_repeated_blocks", None):
        return True
    return any(NOISE_LEVEL.fullmatch(p) for p in inspect.signature(cls.forward).parameters)


def is_of_transformers(module: nn.Module) -> bool:
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.")
        for c in type(module).__mro__
    )


def convolves_video(module: nn.Module) -> bool:
    """Whether most of its weights are kernels of 3-D convolutions."""
    video = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv3d))
    return 2 * video > sum(p.numel() for p in module.parameters())


def _of_transformers(module: nn.Module, often: str) -> str:
    what = f"{type(module).__name__} of transformers"
    if often == usage.EACH_STEP:
        return f"{what} runs at each step, on lengths that are not known; include= compiles it"
    if often == usage.ONCE:
        return (
            f"{what} runs once a call, outside the denoising loop, for less time than compiling "
            "it takes"
        )
    return f"{what} is taken to run once a call, as encoders of prompts and images do"


def _other(name: str, module: nn.Module, often: str, pipeline: type | None) -> str:
    what = type(module).__name__
    if often == usage.ONCE:
        return (
            f"{what} runs once a call, outside the denoising loop; include=[{name!r}] compiles it"
        )
    whose = (
        f"{pipeline.__name__}.__call__ does not show how often it runs"
        if pipeline
        else "no pipeline runs it"
    )
    return (
        f"unknown: {what} takes no timestep and has no decoder, and {whose}; include=[{name!r}] "
        "compiles it"
    )
