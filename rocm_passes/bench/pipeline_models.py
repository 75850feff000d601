"""Building a pipeline of a Spec on a device: random weights, drawn on the device, that can be let
go and redrawn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rocm_passes.bench.pipeline_spec import Spec

SEED = 0


class Weights:
    """The parameters of some modules. A process that waits can let go of their memory and draw them
    again.
    """

    def __init__(self, modules: list[nn.Module], device: torch.device) -> None:
        self._device = device
        self._parameters: dict[int, tuple[str, nn.Parameter]] = {}
        for module in modules:
            for name, parameter in module.named_parameters():
                self._parameters.setdefault(id(parameter), (name, parameter))
        self._bytes = {
            key: p.untyped_storage().nbytes() for key, (_, p) in self._parameters.items()
        }

    def draw(self) -> None:
        """The same values each time: matrices keep activations near one, scales are near one,
        biases near zero.
        """
        generator = torch.Generator(self._device).manual_seed(SEED)
        with torch.no_grad():
            for name, parameter in self._parameters.values():
                parameter.normal_(generator=generator)
                if parameter.ndim >= 2:
                    parameter.mul_(parameter[0].numel() ** -0.5)
                elif name.endswith("weight"):
                    parameter.mul_(0.1).add_(1)
                else:
                    parameter.mul_(0.1)

    def let_go(self) -> None:
        for _, parameter in self._parameters.values():
            parameter.untyped_storage().resize_(0)

    def take_again(self) -> None:
        for key, (_, parameter) in self._parameters.items():
            parameter.untyped_storage().resize_(self._bytes[key])
        self.draw()


def build(spec: Spec, device: torch.device, dtype: torch.dtype) -> tuple[Any, Weights]:
    """The pipeline on the device, without progress bars, and its weights."""
    diffusers = importlib.import_module("diffusers")
    modules = {
        name: _module(getattr(diffusers, cls), config, device, dtype)
        for name, (cls, config) in spec.parts.items()
    }
    weights = Weights(list(modules.values()), device)
    weights.draw()
    scheduler, config = spec.scheduler
    parts = {
        **modules,
        **dict.fromkeys(spec.none),
        "scheduler": getattr(diffusers, scheduler)(**config),
        **spec.init,
    }
    pipe = getattr(diffusers, spec.pipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, weights


def _module(cls: Any, config: Any, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """As from_pretrained(torch_dtype=dtype): buffers as computed, parameters in `dtype` less what
    the class keeps.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls(**config)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                wide = bool(kept & set(f"{path}.{name}".split(".")))
                empty = torch.empty(
                    parameter.shape, dtype=torch.float32 if wide else dtype, device=device
                )
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model.eval()


def arguments(spec: Spec, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Of one call: the same prompt each time. The generator of the latents is made anew by
    `call`.
    """
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    found = spec.call(normal)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def caller(pipe: Any, spec: Spec, given: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """A function that runs the pipeline with so many steps, from the same noise each time."""

    def call(steps: int = spec.steps) -> torch.Tensor:
        noise = torch.Generator().manual_seed(SEED)
        made = pipe(
            **given, num_inference_steps=steps, generator=noise, output_type="pt", return_dict=False
        )[0]
        return made if isinstance(made, torch.Tensor) else torch.stack(list(made))

    return call


class _Stopped(Exception):
    """Ends a call of the pipeline at its denoiser; carries the denoiser's inputs."""


def inputs_of_denoiser(
    denoiser: nn.Module, call: Callable[..., Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the pipeline passes in its first step. To be asked for before anything is compiled."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Stopped(args, kwargs)

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call()
    except _Stopped as stopped:
        args, kwargs = stopped.args
        return args, kwargs
    finally:
        handle.remove()
    raise ValueError(f"the pipeline never called its {type(denoiser).__name__}")


@contextmanager
def watched(vae: Any, mark: Callable[[], None], latents: list[Any]) -> Iterator[None]:
    """Calls `mark` when `vae.decode` begins and when it has returned, and keeps what it was called
    with.
    """
    decode = vae.decode

    def marked(*args: Any, **kwargs: Any) -> Any:
        latents[:] = [(args, kwargs)]
        mark()
        result = decode(*args, **kwargs)
        mark()
        return result

    vae.decode = marked
    try:
        yield
    finally:
        del vae.decode
