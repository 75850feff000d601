"""A float64 run of a model whose code insists on float32 or bfloat16 in places."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
NARROWING = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


class _InFloat64(TorchFunctionMode):
    """Gives float64 wherever the code asks for a narrower floating dtype."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in NARROWING:
            return args[0].double()
        args, kwargs = tree_map_only(
            torch.dtype, lambda dtype: WIDER.get(dtype, dtype), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def in_float64(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], entry: str = "forward"
) -> Any:
    """Call `entry` of a copy of the model with the same weights, buffers and inputs, all computed
    in float64.

    Weights, buffers and inputs keep the values that their own dtype gave them; constants that the
    code makes afresh (rotary tables made on the fly, timestep embeddings) are made in float64.
    """
    wide = copy.deepcopy(model).double()
    args, kwargs = tree_map_only(torch.Tensor, _widen, (tuple(args), dict(kwargs)))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _InFloat64():
            return (wide if entry == "forward" else getattr(wide, entry))(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype))
