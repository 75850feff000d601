"""A workload of production size: one transformer block or one VAE decode, with its inputs.

A block's inputs are the model's own: the model is built at production width with a single block,
is fed a latent of production size, and is stopped at the block. So shapes, strides, dtypes, masks
and rotary tables are those of a pipeline.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from rocm_passes.bench.inputs import Draw, randomise


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
