"""The calls of aiter's convolutions, and what they leave behind taken away again.

aiter keeps the packed form of every weight that it has seen. Its keys miss changes that are made
through `.data` (a LoRA merge), in versions up to 0.1.20 every change in place; later ones read the
version counter, which raises on inference tensors. And up to 256 weights stay in memory after their
pipeline is gone. So each call gets a fresh copy of the weight, and its pack is dropped after it:
nothing goes stale, nothing stays.
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.conv_contract import CONV3D, ConvEntry
from rocm_passes.ops.aiter_conv import CHANNELS_LAST, AiterConv

CONV2D = "aiter.ops.triton.conv.conv2d"
PREPACK = "aiter.ops.triton.conv._prepack"
FLYDSL = "aiter.ops.flydsl.conv_kernels"

#: aiter's caches of packed weights are not safe for threads.
_LOCK = threading.Lock()


def convolve(call: AiterConv, entry: ConvEntry) -> Tensor:
    """The call by aiter. Its contract has been checked, and its result is not empty."""
    x = call.x.contiguous(memory_format=CHANNELS_LAST[call.x.dim()])
    with torch.inference_mode(False), torch.no_grad():
        # Contiguous, and never channels-last: of such a weight FlyDSL's pack is a view, which its
        # cache would keep alive for good.
        weight = torch.empty(call.weight.shape, dtype=call.weight.dtype, device=x.device)
        weight.copy_(call.weight)
    bias = None if call.bias is None else call.bias.contiguous()
    run = _flydsl if entry == "flydsl" else _triton
    with _LOCK, contract.device_guard(x), torch.no_grad():
        return run(call, entry, x, weight, bias)


def _flydsl(call: AiterConv, entry: ConvEntry, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    function = importlib.import_module(FLYDSL).flydsl_conv_implicit
    layout = "NHWC" if x.dim() == 4 else "NDHWC"
    behind = [0, *range(2, x.dim()), 1]
    y: Tensor = function(
        x.permute(behind),
        weight,
        bias=bias,
        **_parameters(call),
        groups=call.groups,
        # More splits add up by atomics: the result would differ from run to run.
        splitk=1,
        input_layout=layout,
        output_layout=layout,
    )
    return y.permute([0, x.dim() - 1, *range(1, x.dim() - 1)])


def _triton(call: AiterConv, entry: ConvEntry, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    try:
        y: Tensor = _triton_function(call, entry)(x, weight, bias, **_parameters(call))
        return y
    finally:
        _forget(weight)


def _triton_function(call: AiterConv, entry: ConvEntry) -> Callable[..., Any]:
    """One that never takes Winograd's way unasked, as aiter's own choice in NCHW does."""
    if call.x.dim() == 5:
        conv3d = importlib.import_module(CONV3D).conv3d
        return lambda *args, **kwargs: conv3d(*args, **kwargs, layout="ndhwc")
    module = importlib.import_module(CONV2D)
    if entry == "winograd":
        name = "conv2d_winograd_f4x3"
    elif call.kernel == (3, 3):
        return module.conv2d_nhwc_3x3  # type: ignore[no-any-return]
    else:
        pixels = call.kernel == (1, 1) and tuple(call.dilation) == (1, 1)
        name = "conv2d_1x1" if pixels else "conv2d_general"
    function = getattr(module, name)
    return lambda *args, **kwargs: function(*args, **kwargs, layout="nhwc")


def _parameters(call: AiterConv) -> dict[str, tuple[int, ...]]:
    """As tuples: up to 0.1.20 a list is not equal to (1, 1), and another kernel is taken."""
    names = ("stride", "padding", "dilation")
    return {name: tuple(int(v) for v in getattr(call, name)) for name in names}


def packs() -> list[OrderedDict[Any, tuple[Any, ...]]]:
    """aiter's caches of packed weights: by key, the weight and its pack."""
    module = importlib.import_module(PREPACK)
    inside = (getattr(value, "_d", None) for value in vars(module).values())
    return [found for found in inside if isinstance(found, OrderedDict)]


def _forget(weight: Tensor) -> None:
    for cache in packs():
        for key in [key for key, (source, *_) in list(cache.items()) if source is weight]:
            del cache[key]
