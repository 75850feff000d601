"""A 1x1 or 1x1x1 convolution before what moves its input's pixels: exact algebra in plain ATen.

conv(cat([up(a), up(b)])) = cat([up(conv(a)), up(conv(b))])
"""

from __future__ import annotations

from typing import Any

import torch

from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.upsampled_conv import (
    UPSAMPLED_CONV,
    UpsampledConv,
    write_moves,
)

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default


def write(b: Any, call: UpsampledConv) -> Any:
    pieces, dim = call.moved
    computed: dict[Any, Any] = {}
    parts = []
    for source, casts, moves in pieces:
        key = (id(source), casts)
        if key not in computed:
            x = source
            for dtype in casts:
                x = b(convert, x, dtype)
            computed[key] = _convolved(b, x, call)
        parts.append(write_moves(b, moves, computed[key]))
    return parts[0] if dim is None else b(aten.cat.default, parts, dim)


def _convolved(b: Any, x: Any, call: UpsampledConv) -> Any:
    """[N, C, *spatial] to [N, O, *spatial], channels-last in memory: one row of a matrix for each
    pixel.
    """
    n, channels, *spatial = b.value(x).shape
    rank = len(spatial)
    if call.groups != 1:
        ones, none = [1] * rank, [0] * rank
        rest = (ones, none, ones, False, none, call.groups)
        return b(aten.convolution.default, x, call.weight, call.bias, *rest)
    out = b.value(call.weight).shape[0]
    rows = b(aten.permute.default, x, [0, *range(2, rank + 2), 1])
    rows = b(aten.reshape.default, rows, [-1, channels])
    matrix = b(aten.permute.default, b(aten.reshape.default, call.weight, [out, channels]), [1, 0])
    if call.bias is None:
        y = b(aten.mm.default, rows, matrix)
    else:
        y = b(aten.addmm.default, call.bias, rows, matrix)
    y = b(aten.reshape.default, y, [n, *spatial, out])
    return b(aten.permute.default, y, [0, rank + 1, *range(1, rank + 1)])


BEFORE_UPSAMPLING = UPSAMPLED_CONV.register(Lowering("before_upsampling", write=write))
