"""Nearest upsampling by whole factors: a gather by computed indices, which Inductor fuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rocm_passes.fx.nodes import aten, prims


def upsampled(b: Any, x: Any, factors: Sequence[int]) -> Any:
    """x [N, C, H, W] with each pixel repeated factors[0] times down and factors[1] times across."""
    if all(factor == 1 for factor in factors):
        return x
    value = b.value(x)
    down, across = (
        _places(b, size * factor, factor, value.device)
        for size, factor in zip(value.shape[2:], factors, strict=True)
    )
    down = b(aten.unsqueeze.default, down, 1)
    return b(aten._unsafe_index.Tensor, x, [None, None, down, across])


def _places(b: Any, count: int, factor: int, device: torch.device) -> Any:
    """0, 0, 1, 1, ... for a factor of 2."""
    number = {"dtype": torch.int64, "device": device, "requires_grad": False}
    counted = b(prims.iota.default, count, start=0, step=1, **number)
    if factor == 1:
        return counted
    return b(aten.div.Tensor_mode, counted, factor, rounding_mode="floor")
