"""Random weights and inputs for real model classes: no checkpoint is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Draw:
    """Reproducible random inputs in one floating dtype."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype or self.dtype)

    def tokens(self, *shape: int, high: int) -> torch.Tensor:
        return torch.randint(1, high, shape, generator=self._generator)


def timestep(value: float = 500, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """One denoising step, shape [1]."""
    return torch.tensor([value], dtype=dtype)


def grid_ids(height: int, width: int, axes: int = 3) -> torch.Tensor:
    """Position ids [height * width, axes]: the last two axes hold row and column, the
    others zero.
    """
    ids = torch.zeros(height, width, axes)
    ids[..., -2] += torch.arange(height)[:, None]
    ids[..., -1] += torch.arange(width)[None, :]
    return ids.reshape(-1, axes)


def randomise(model: nn.Module) -> None:
    """Draw the weights anew, so that no branch of the model is trivially zero, one, or
    uninitialised.

    Constant parameters (norm weights of one; zero-initialised gates, biases, tables, pad tokens)
    get noise of 0.1 round their constant; the others of two dimensions or more become normal with
    variance 1/fan_in, which keeps activations near one through a whole model. Random parameters of
    one dimension stay as they are.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            first = parameter.flatten()[:1]
            if bool((parameter == first).all()):
                parameter.add_(0.1 * noise)
            elif parameter.ndim >= 2:
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)


def tensors_in(result: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [tensor for value in result.values() for tensor in tensors_in(value)]
    if isinstance(result, (tuple, list)):
        return [tensor for value in result for tensor in tensors_in(value)]
    return []
