"""aiter's convolutions in plain torch on CPU tensors, with the harm that each of them would do.

Triton's keep every weight's pack by a key that differs with the version; a pack that is no longer
the weight's raises, as do calls whose strides, tuples or sizes the real kernel would misread.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .aiter_harm import HALVES, hold, insist, reachable

#: The architectures that launch configurations came for, by the version that brought them.
TABLES = {
    (0, 1, 18): ("gfx942", "gfx950", "gfx1200", "gfx1201"),
    (0, 1, 19): ("gfx1250",),
    (0, 1, 20): ("gfx1100", "gfx1151"),
    (0, 1, 22): ("gfx1101", "gfx1150"),
}
#: Versions from here on have the change counter in the key of a pack.
COUNTED = (0, 1, 21)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
Pack = OrderedDict[Any, tuple[Tensor, Tensor]]


def tables(version: tuple[int, ...]) -> list[str]:
    return [arch for since, archs in TABLES.items() if version >= since for arch in archs]


def configs(version: tuple[int, ...]) -> dict[str, str]:
    """The JSON files of launch configurations, where that version has them."""
    if version >= COUNTED:
        places = [f"{arch}/triton/conv/bf16/DEFAULT" for arch in tables(version)]
    else:
        places = [f"conv/{arch}-CONV-GENERAL" for arch in tables(version)]
    return {f"ops/triton/configs/{place}.json": "{}" for place in places}


def triton_conv(
    version: tuple[int, ...],
    arch: str,
    kind: str,
    packs: Pack,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Any, Any, Any],
    layout: str,
) -> Tensor:
    """kind: "1x1", "3x3", "general", "winograd", or "conv3d", which checks more by itself."""
    rank = x.dim() - 2
    if kind == "conv3d":
        _refusals_of_conv3d(x, weight, parameters)
    hold(layout in ("nhwc", "ndhwc"), "contiguous strides are taken for granted, or Winograd's way")
    hold(x.dtype in HALVES, "no kernel for the dtype")
    hold(weight.dtype == x.dtype, "two dtypes in one product")
    insist(weight.dim() == x.dim() and weight.shape[1] == x.shape[1], "Cw == C")
    hold(x.is_contiguous(memory_format=LAST[x.dim()]), "strides are computed from the shape")
    for values in parameters:
        hold(isinstance(values, tuple) and len(values) == rank, "a list takes another kernel")
    stride, padding, dilation = parameters
    hold(min(*stride, *dilation) >= 1 and min(padding) >= 0, "unchecked: garbage")
    kernel = tuple(weight.shape[2:])
    if kind == "1x1" and (set(kernel) != {1} or set(dilation) != {1}):
        raise ValueError("conv2d_1x1 requires 1x1 kernel")
    if kind == "3x3" and kernel != (3, 3):
        raise ValueError("conv2d_nhwc_3x3 requires 3x3 kernel")
    if kind == "winograd":
        if kernel != (3, 3) or {*stride, *dilation} != {1} or x.shape[1] < 4:
            raise ValueError("requires 3x3 kernel with stride=1, dilation=1 and C >= 4")
        hold(x.dtype == torch.bfloat16 or float(x.abs().max()) < 655, "the transform overflows")
    if arch not in tables(version):
        raise FileNotFoundError(f"{arch}-CONV-{kind.upper()}.json")
    _bias_fits(bias, weight)
    packed = weight if set(kernel) == {1} else _pack(packs, weight, version)
    return _result(x, packed, bias, parameters, 1).contiguous(memory_format=LAST[x.dim()])


def _refusals_of_conv3d(x: Tensor, weight: Tensor, parameters: tuple[Any, Any, Any]) -> None:
    if x.dtype not in HALVES:
        raise ValueError(f"conv3d only supports fp16 and bf16 inputs, got {x.dtype}")
    if x.dim() != 5 or weight.dim() != 5 or weight.shape[1] != x.shape[1]:
        raise ValueError("conv3d takes 5-D tensors and groups=1")


def _pack(packs: Pack, weight: Tensor, version: tuple[int, ...]) -> Tensor:
    """The pack that aiter would compute with: of the weight, or what it took for the weight."""
    key: tuple[Any, ...] = (weight.untyped_storage().data_ptr(), tuple(weight.shape), weight.dtype)
    if version >= COUNTED:
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype)
        key += (weight._version,)
    if key not in packs:
        packs[key] = (weight, weight.detach().clone())
    _, packed = packs[key]
    hold(torch.equal(packed, weight), "the pack is of what the weight was before")
    return packed


def flydsl_conv(
    arch: str,
    packs: dict[int, Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Any, Any, Any],
    groups: int,
    splitk: int | None,
    layouts: tuple[str, str],
) -> Tensor:
    """`flydsl_conv_implicit` of tensors that lie as their layout says."""
    if arch != "gfx950":
        raise RuntimeError(f"flydsl_conv_implicit requires one of ['gfx950'], got {arch}.")
    rank = weight.dim() - 2
    insist(layouts[0] == layouts[1] == ("NHWC" if rank == 2 else "NDHWC"), "a layout to transpose")
    insist(x.dtype == weight.dtype == torch.bfloat16, "flydsl_conv_implicit is bf16-only")
    insist(x.dim() == rank + 2 and x.shape[-1] == weight.shape[1] * groups, "channels")
    insist(weight.shape[0] % groups == 0, "groups")
    insist(bias is None or tuple(bias.shape) == (weight.shape[0],), "bias")
    hold(splitk == 1, "sums by atomics differ from run to run")
    hold(x.is_contiguous(), "a copy of the whole input")
    hold(set(weight.shape[2:]) != {1}, "a matrix product that rounds before the bias")
    reachable(x)
    _packed_by_flydsl(packs, weight)
    inside = x.permute(0, rank + 1, *range(1, rank + 1))
    y = _result(inside, weight, bias, parameters, groups)
    return y.permute(0, *range(2, rank + 2), 1).contiguous()


def _packed_by_flydsl(packs: dict[int, Any], weight: Tensor) -> None:
    anchor = weight if weight._base is None else weight._base
    stamp = (weight._version, tuple(weight.shape), weight.stride(), weight.dtype)
    key = weight.data_ptr()
    found = packs.get(key)
    if found is None or found[0]() is not anchor or found[2] != stamp:
        behind = weight.permute(0, *range(2, weight.dim()), 1)
        whole = weight.shape[1] % 8 == 0
        hold(not (whole and behind.is_contiguous()), "its cache keeps the weight alive for good")
        packs[key] = (weakref.ref(anchor, lambda _: packs.pop(key, None)), behind.clone(), stamp)
    behind = weight.permute(0, *range(2, weight.dim()), 1)
    hold(torch.equal(packs[key][1], behind), "the pack is of what the weight was before")


def _bias_fits(bias: Tensor | None, weight: Tensor) -> None:
    hold(bias is None or tuple(bias.shape) == (weight.shape[0],), "reads past the bias's end")


def _result(
    x: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple[Any, Any, Any], groups: int
) -> Tensor:
    """Products summed in float32, rounded once."""
    reachable(x, weight)
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    inputs = (x.float(), weight.float(), None if bias is None else bias.float())
    y = convolve(*inputs, *map(tuple, parameters), groups).to(x.dtype)
    hold(math.prod(y.shape) * y.element_size() < 2**31, "int32 byte offset overflows")
    return y
