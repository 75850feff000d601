"""What a convolution must fulfil before aiter may be called: the checks of `aiter_conv.py`.

Sources: aiter/ops/triton/conv/ (conv2d.py from 0.1.18, conv3d.py later), and
aiter/ops/flydsl/conv_kernels.py. The Triton kernels take strides from the shape and trust the
tensors to have them; FlyDSL's checks are `assert`s, which `python -O` removes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.kernels.aiter import contract, installation
from rocm_passes.ops.aiter_conv import AiterConv

#: The functions behind the names: FlyDSL's implicit GEMM, Triton's direct kernels, Winograd's.
ConvEntry = Literal["flydsl", "triton", "winograd"]

CONV3D = "aiter.ops.triton.conv.conv3d"

#: FlyDSL's kernel is written against this architecture's matrix instructions.
FLYDSL_ARCHS = ("gfx950",)
#: Channels are padded to a multiple of this many: in x by FlyDSL, in the packed weight by Triton.
FLYDSL_CHANNELS, TRITON_CHANNELS = 8, 64
GRID_Y_MAX = 65535
#: FlyDSL's narrowest tile has as many output channels.
FLYDSL_TILE = 32
#: Winograd's F(4x4, 3x3): 36 products for a tile of 4 x 4 results.
WINOGRAD_TILE, WINOGRAD_PRODUCTS = 4, 36
#: With fewer channels aiter refuses, since the transform amplifies rounding by up to 361.
WINOGRAD_CHANNELS = 4

FEATURES: dict[tuple[ConvEntry, int], str] = {
    ("flydsl", 2): "flydsl_conv",
    ("flydsl", 3): "flydsl_conv",
    ("triton", 2): "triton_conv2d",
    ("triton", 3): "triton_conv3d",
    ("winograd", 2): "triton_conv2d_winograd",
}


def refusal(call: AiterConv, entry: ConvEntry, arch: str | None = None) -> str | None:
    """Why aiter's function may not take this call; None if it can. Fake tensors will do.

    arch: what the graph is compiled for, where there is no device to ask.
    """
    return next(_violations(call, entry, arch), None)


def _violations(call: AiterConv, entry: ConvEntry, arch: str | None) -> Iterator[str]:
    rank = call.x.dim() - 2
    feature = FEATURES.get((entry, rank))
    if feature is None:
        yield f"x has {call.x.dim()} dimensions: aiter's {entry} convolution has no such kernel"
        return
    yield from contract.available(feature)
    if feature == "triton_conv3d" and (error := installation.import_error(CONV3D)) is not None:
        yield error
    if feature == "triton_conv2d" and call.kernel in ((1, 1), (3, 3)):
        yield from contract.available(f"triton_conv2d_{call.kernel[0]}x{call.kernel[1]}")
    named = {"x": call.x, "weight": call.weight, "bias": call.bias}
    yield from contract.placement({name: t for name, t in named.items() if t is not None})
    yield from _architecture(call.x, entry, arch)
    yield from _dtypes(call, entry)
    yield from _shapes(call, rank)
    yield from _parameters(call, rank)
    yield from _sizes(call, entry)
    if entry == "flydsl":
        yield from _flydsl(call)
    elif call.groups != 1:
        yield f"groups={call.groups}: aiter's Triton convolution takes 1"
    if entry == "winograd":
        yield from _winograd(call)


def _architecture(x: Tensor, entry: ConvEntry, arch: str | None) -> Iterator[str]:
    found = contract.architecture(x.device) or arch
    if entry == "flydsl" and found not in FLYDSL_ARCHS:
        yield f"the GPU is {found}: aiter's FlyDSL convolution runs on {', '.join(FLYDSL_ARCHS)}"
    first = contract.first_architecture()
    if first is not None and found is not None and first != found:
        yield f"x is on a {found} and the first GPU is {first}: aiter compiles for the first"


def _dtypes(call: AiterConv, entry: ConvEntry) -> Iterator[str]:
    allowed = {torch.bfloat16} if entry in ("flydsl", "winograd") else contract.HALF_DTYPES
    if entry == "winograd" and call.x.dtype is torch.float16:
        yield "x is float16: Winograd's transform of values from 655 on leaves its range"
    yield from contract.dtype("x", call.x, allowed)
    if call.weight.dtype != call.x.dtype:
        found, expected = map(dtype_name, (call.weight.dtype, call.x.dtype))
        yield f"weight is {found} and x is {expected}: aiter takes one dtype and checks none"
    if call.bias is not None:
        yield from contract.dtype("bias", call.bias, contract.FLOAT_DTYPES)


def _shapes(call: AiterConv, rank: int) -> Iterator[str]:
    x, weight = call.x, call.weight
    if weight.dim() != rank + 2:
        yield f"x has {rank + 2} dimensions and the weight {weight.dim()}"
        return
    if call.groups < 1 or weight.shape[0] % call.groups or x.shape[1] % call.groups:
        yield f"{x.shape[1]} channels to {weight.shape[0]} do not divide into {call.groups} groups"
    if weight.shape[1] * call.groups != x.shape[1]:
        shapes = f"{contract.shape_name(weight)} and x {contract.shape_name(x)}"
        yield f"the weight has shape {shapes}: their channels differ"
    if weight.numel() == 0 or (x.numel() == 0 and x.shape[0] != 0):
        shapes = f"{contract.shape_name(x)} by {contract.shape_name(weight)}"
        yield f"{shapes}: aiter divides by sizes of 0"
    bias = call.bias
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        shape = contract.shape_name(bias)
        yield f"the bias has shape {shape}: aiter reads {weight.shape[0]} elements unchecked"


def _parameters(call: AiterConv, rank: int) -> Iterator[str]:
    for name in ("stride", "padding", "dilation"):
        values = tuple(getattr(call, name))
        if len(values) != rank or not all(isinstance(v, int) for v in values):
            yield f"{name}={values}: aiter takes {rank} numbers"
            return
        if min(values) < (0 if name == "padding" else 1):
            yield f"{name}={values}: aiter does not check it"
    if min(call.shape()[2:]) < 1:
        yield f"the result has shape {list(call.shape())}: aiter divides by sizes of 0"


def _sizes(call: AiterConv, entry: ConvEntry) -> Iterator[str]:
    """What aiter's 32-bit offsets must reach, as it lies in memory when the kernel reads it."""
    x, weight, itemsize = call.x, call.weight, call.x.itemsize
    unit = FLYDSL_CHANNELS if entry == "flydsl" else TRITON_CHANNELS
    per_group = math.ceil(weight.shape[1] / unit) * unit
    channels = per_group * call.groups if entry == "flydsl" else x.shape[1]
    held = {
        "x": x.shape[0] * channels * math.prod(x.shape[2:]) * itemsize,
        "the result": math.prod(call.shape()) * itemsize,
        "the packed weight": weight.shape[0] * per_group * math.prod(call.kernel) * itemsize,
    }
    if entry == "winograd":
        tiles = x.shape[0] * math.prod(math.ceil(s / WINOGRAD_TILE) for s in call.shape()[2:])
        held["Winograd's input"] = WINOGRAD_PRODUCTS * tiles * per_group * itemsize
        held["Winograd's products"] = WINOGRAD_PRODUCTS * tiles * weight.shape[0] * 4
    for name, size in held.items():
        if size >= contract.INT32_BYTES:
            yield f"{name} takes {size / 2**30:.2f} GiB: aiter's 32-bit offsets end at 2 GiB"


def _flydsl(call: AiterConv) -> Iterator[str]:
    if set(call.kernel) == {1}:
        yield (
            "the kernel has one element: aiter takes a matrix product, and rounds before it adds "
            "the bias"
        )
    columns = call.groups * math.ceil(call.weight.shape[0] / call.groups / FLYDSL_TILE)
    if columns > GRID_Y_MAX:
        yield f"{columns} blocks of output channels: aiter's grid ends at {GRID_Y_MAX}"


def _winograd(call: AiterConv) -> Iterator[str]:
    if call.kernel != (3, 3) or set(call.stride) != {1} or set(call.dilation) != {1}:
        yield "aiter's Winograd convolution takes 3x3 kernels of stride 1 and dilation 1"
    if call.x.shape[1] < WINOGRAD_CHANNELS:
        yield f"{call.x.shape[1]} channels: aiter's Winograd convolution takes 4 or more"
