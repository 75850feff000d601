"""Transposed convolutions whose kernel is as large as their stride: no two outputs overlap.

    y[n, o, k * s + j] = sum over c of x[n, c, s] * w[c, o, j] + bias[o]

Depthwise it is one product for each output; of one group it is a matrix product, whose results are
moved to their pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from rocm_passes.kernels.aten.conv3d_steps import LOW_PRECISION, aten, convert
from rocm_passes.ops.conv_transposed import CONV_TRANSPOSED, ConvTransposed
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def _refuses(call: ConvTransposed, target: Target) -> str | None:
    if not call.has_numbers():
        return "its sizes are symbolic"
    return call.overlaps()


def _refuses_product(call: ConvTransposed, target: Target) -> str | None:
    if call.weight.shape[0] != call.groups:
        return f"{call.weight.shape[0]} channels in {call.groups} groups: it sums over channels"
    return _refuses(call, target)


def _refuses_matmul(call: ConvTransposed, target: Target) -> str | None:
    return _refuses(call, target) or (f"groups={call.groups}" if call.groups != 1 else None)


def write_product(b: Any, call: ConvTransposed) -> Any:
    """In float32 and rounded once, as the library has it. Inductor fuses it with its neighbours."""
    n, channels, *size = b.value(call.x).shape
    _, per_group, *kernel = b.value(call.weight).shape
    dtype = b.value(call.x).dtype
    x = b(aten.reshape.default, call.x, [n, channels, 1, *_between(size, [1] * len(size))])
    weight = b(
        aten.reshape.default,
        call.weight,
        [1, channels, per_group, *_between([1] * len(size), kernel)],
    )
    y = b(aten.mul.Tensor, _wide(b, x), _wide(b, weight))
    if call.bias is not None:
        bias = b(aten.reshape.default, call.bias, [1, channels, per_group, *[1] * 2 * len(size)])
        y = b(aten.add.Tensor, y, _wide(b, bias))
    y = b(convert, y, dtype) if b.value(y).dtype is not dtype else y
    return b(aten.reshape.default, y, [n, channels * per_group, *_grown(size, kernel)])


def write_matmul(b: Any, call: ConvTransposed) -> Any:
    n, channels, *size = b.value(call.x).shape
    _, out, *kernel = b.value(call.weight).shape
    rank = len(size)
    rows = b(aten.permute.default, call.x, [0, *range(2, rank + 2), 1])
    rows = b(aten.reshape.default, rows, [-1, channels])
    matrix = b(aten.reshape.default, call.weight, [channels, -1])
    if call.bias is None:
        y = b(aten.mm.default, rows, matrix)
    else:
        bias = b(aten.unsqueeze.default, call.bias, 1)
        bias = b(aten.expand.default, bias, [out, math.prod(kernel)])
        y = b(aten.addmm.default, b(aten.reshape.default, bias, [-1]), rows, matrix)
    y = b(aten.reshape.default, y, [n, *size, out, *kernel])
    moved = [place for dim in range(rank) for place in (1 + dim, 2 + rank + dim)]
    y = b(aten.permute.default, y, [0, 1 + rank, *moved])
    return b(aten.reshape.default, y, [n, out, *_grown(size, kernel)])


def write_direct(b: Any, call: ConvTransposed) -> Any:
    return b(aten.convolution.default, *call.of_aten())


def _between(first: Any, second: Any) -> list[Any]:
    """a0, b0, a1, b1, ..."""
    return [size for pair in zip(first, second, strict=True) for size in pair]


def _grown(size: Any, kernel: Any) -> list[Any]:
    return [s * k for s, k in zip(size, kernel, strict=True)]


def _wide(b: Any, t: Any) -> Any:
    return b(convert, t, torch.float32) if b.value(t).dtype in LOW_PRECISION else t


CONV_TRANSPOSED.register(Lowering("product", refuses=_refuses_product, write=write_product))
CONV_TRANSPOSED.register(Lowering("matmul", refuses=_refuses_matmul, write=write_matmul))
CONV_TRANSPOSED.register(Lowering("direct", write=write_direct))
