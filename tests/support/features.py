"""What users do to a pipeline beside compiling it. Each is run twice: in eager, and compiled.

A feature is a generator over a `Session`. `yield` stands where the pipeline is compiled; the
results of `session.run` before and after it are compared with those of the eager run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import accelerate
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from rocm_passes.bench import pipeline_models
from rocm_passes.bench.pipeline_specs import PIPELINES
from tests.support.small import small

CPU = torch.device("cpu")


class NotOffered(Exception):
    """The pipeline or its model does not have this feature; the message says which is missing."""


@dataclass
class Session:
    """One tiny pipeline with its weights, and what its calls returned."""

    name: str
    results: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.spec = small(PIPELINES[self.name](True))
        self.pipe, _ = pipeline_models.build(self.spec, CPU, torch.float32)
        self.arguments = pipeline_models.arguments(self.spec, CPU, torch.float32)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.spec.denoiser)

    @property
    def vae(self) -> Any:
        return self.pipe.vae

    @property
    def modules(self) -> list[nn.Module]:
        return [self.denoiser, self.vae]

    def run(self, **changed: Any) -> None:
        """A call of two steps, whose images are kept."""
        with torch.no_grad():
            self.results.append(self._call("pt", changed).float())

    def denoise(self) -> None:
        """A call whose latents are kept. Nothing is decoded: the feature leaves the VAE as it is,
        and compiling the decoder again would take most of the time.
        """
        with torch.no_grad():
            self.results.append(self._call("latent", {}).float())

    def _call(self, output_type: str, changed: dict[str, Any]) -> Tensor:
        made = self.pipe(
            **{**self.arguments, **changed},
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type=output_type,
            return_dict=False,
        )[0]
        return made if isinstance(made, Tensor) else torch.stack(list(made))


Feature = Callable[[Session], Iterator[None]]


def twice(session: Session) -> Iterator[None]:
    yield
    session.run()
    session.run()


def other_resolution(session: Session) -> Iterator[None]:
    yield
    session.run()
    session.run(height=2 * session.arguments["height"])
    session.run()


def channels_last(session: Session) -> Iterator[None]:
    for module in session.modules:
        if any(isinstance(m, nn.Conv2d) for m in module.modules()):
            module.to(memory_format=torch.channels_last)
    yield
    session.run()


def tiling(session: Session) -> Iterator[None]:
    if not hasattr(session.vae, "enable_tiling"):
        raise NotOffered(f"{type(session.vae).__name__} has no enable_tiling")
    session.vae.enable_tiling()
    for size in ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width"):
        if hasattr(session.vae, size):
            setattr(session.vae, size, 32)
    if hasattr(session.vae, "tile_latent_min_size"):
        session.vae.tile_latent_min_size = 32 // session.pipe.vae_scale_factor
    for stride in ("tile_sample_stride_height", "tile_sample_stride_width"):
        if hasattr(session.vae, stride):
            setattr(session.vae, stride, 24)
    yield
    session.run(height=64, width=64)


def model_offload(session: Session) -> Iterator[None]:
    for module in session.modules:
        accelerate.cpu_offload_with_hook(module, CPU)
    yield
    session.run()


def sequential_offload(session: Session) -> Iterator[None]:
    for module in session.modules:
        accelerate.cpu_offload(module, CPU, offload_buffers=True)
    yield
    session.run()


def group_offload(session: Session) -> Iterator[None]:
    apply_group_offloading(
        session.denoiser, CPU, offload_type="block_level", num_blocks_per_group=1
    )
    yield
    session.denoise()


def group_offload_leaf(session: Session) -> Iterator[None]:
    apply_group_offloading(session.denoiser, CPU, offload_type="leaf_level")
    yield
    session.denoise()


def layerwise_fp8(session: Session) -> Iterator[None]:
    session.denoiser.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    yield
    session.denoise()


def torchao_int8(session: Session) -> Iterator[None]:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise NotOffered(f"torchao is not installed ({error})") from None
    quantize_(session.denoiser, Int8WeightOnlyConfig())
    yield
    session.denoise()


def first_block_cache(session: Session) -> Iterator[None]:
    try:
        session.denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    except (AttributeError, ValueError) as error:
        raise NotOffered(str(error)) from None
    yield
    session.denoise()


def lora_before(session: Session) -> Iterator[None]:
    add_lora(session.denoiser)
    yield
    session.denoise()


def lora_after(session: Session) -> Iterator[None]:
    yield
    session.denoise()
    add_lora(session.denoiser)
    session.denoise()


def lora_fused(session: Session) -> Iterator[None]:
    add_lora(session.denoiser)
    session.denoiser.fuse_lora()
    yield
    session.denoise()


def lora_off_and_on(session: Session) -> Iterator[None]:
    add_lora(session.denoiser)
    yield
    session.denoise()
    session.denoiser.disable_adapters()
    session.denoise()
    session.denoiser.enable_adapters()
    session.denoise()


def lora_hot_swap(session: Session) -> Iterator[None]:
    """As diffusers documents it: prepare for the largest rank, load, compile, load over it."""
    first, second = (lora_weights(session.name, seed) for seed in (1, 2))
    session.denoiser.enable_lora_hotswap(target_rank=4)
    session.denoiser.load_lora_adapter(first, adapter_name="style", prefix=None)
    yield
    session.denoise()
    session.denoiser.load_lora_adapter(second, adapter_name="style", prefix=None, hotswap=True)
    session.denoise()


def training(session: Session) -> Iterator[None]:
    """One step of the denoiser on the inputs of a pipeline's first step."""
    yield from _training(session)


def checkpointed_training(session: Session) -> Iterator[None]:
    if not session.denoiser._supports_gradient_checkpointing:
        raise NotOffered(f"{type(session.denoiser).__name__} has no gradient checkpointing")
    session.denoiser.enable_gradient_checkpointing()
    yield from _training(session)


def _training(session: Session) -> Iterator[None]:
    model = session.denoiser.train().requires_grad_(True)
    args, kwargs = pipeline_models.inputs_of_denoiser(model, session.denoise)
    yield
    result = model(*args, **{**kwargs, "return_dict": False})[0]
    result = torch.stack(list(result)) if not isinstance(result, Tensor) else result
    result.square().mean().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    session.results += [result.detach(), torch.cat(gradients)]


def add_lora(model: Any, seed: int = 1) -> None:
    """An adapter of rank 4 on the attentions' projections, with random weights."""
    from peft import LoraConfig

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in ("to_q", "to_k", "to_v", "qkv")
    ]
    if not names:
        raise NotOffered("no attention projection named to_q, to_k or to_v")
    model.add_adapter(LoraConfig(r=4, target_modules=names), adapter_name="style")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=generator).mul_(parameter.shape[1] ** -0.5)


def lora_weights(name: str, seed: int) -> dict[str, Tensor]:
    from peft.utils import get_peft_model_state_dict

    model = Session(name).denoiser
    add_lora(model, seed)
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name="style")
    return found


#: By the heading of its column.
FEATURES: dict[str, Feature] = {
    "two calls": twice,
    "other size": other_resolution,
    "channels-last": channels_last,
    "VAE tiling": tiling,
    "LoRA, then compiled": lora_before,
    "compiled, then LoRA": lora_after,
    "LoRA fused": lora_fused,
    "LoRA off and on": lora_off_and_on,
    "LoRA hot-swapped": lora_hot_swap,
    "model offload": model_offload,
    "sequential offload": sequential_offload,
    "group offload, blocks": group_offload,
    "group offload, leaves": group_offload_leaf,
    "fp8 layerwise": layerwise_fp8,
    "torchao int8": torchao_int8,
    "FirstBlockCache": first_block_cache,
    "training": training,
    "training, checkpointed": checkpointed_training,
}
