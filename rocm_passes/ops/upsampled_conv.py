"""A 1x1 or 1x1x1 convolution before what moves its input's pixels: exact algebra in plain ATen.

    conv(cat([up(a), up(b)])) = cat([up(conv(a)), up(conv(b))])

A call:
    moved         (pieces, dim) of `graph.pixels.Moved`: the convolution's input, as pixels moved
    weight        [O, C/groups, 1, 1] or [O, C/groups, 1, 1, 1]; bias [O] or None; groups
    shape         of the input, [N, C, *spatial]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rocm_passes.idioms.convolution import pixels
from rocm_passes.ops.operator import Lowering, Verdict
from rocm_passes.target import Target

aten = torch.ops.aten
convert = torch.ops.prims.convert_element_type.default
#: The result is written in full either way; at fewer repetitions the gather costs what the products save.
LEAST_REPETITION = 2


def repetition(moved: Any, shape: Sequence[int]) -> float:
    """How many of the input's pixels there are for one that they are made of."""
    sources = {id(source): source for source, _, _ in moved[0]}
    made_of = sum(math.prod(s.shape[2:]) for s in sources.values())
    return float(math.prod(shape[2:]) / made_of)


def write(b: Any, *, moved: Any, weight: Any, bias: Any, groups: int, shape: Sequence[int]) -> Any:
    pieces, dim = moved
    computed: dict[Any, Any] = {}
    parts = []
    for source, casts, moves in pieces:
        key = (id(source), casts)
        if key not in computed:
            x = source
            for dtype in casts:
                x = b(convert, x, dtype)
            computed[key] = _convolved(b, x, weight, bias, groups)
        parts.append(pixels.write(b, moves, computed[key]))
    return parts[0] if dim is None else b(aten.cat.default, parts, dim)


def _convolved(b: Any, x: Any, weight: Any, bias: Any, groups: int) -> Any:
    """[N, C, *spatial] to [N, O, *spatial], channels-last in memory: one row of a matrix for each pixel."""
    n, channels, *spatial = b.value(x).shape
    rank = len(spatial)
    if groups != 1:
        ones, none = [1] * rank, [0] * rank
        return b(aten.convolution.default, x, weight, bias, ones, none, ones, False, none, groups)
    out = b.value(weight).shape[0]
    rows = b(aten.permute.default, x, [0, *range(2, rank + 2), 1])
    rows = b(aten.reshape.default, rows, [-1, channels])
    matrix = b(aten.permute.default, b(aten.reshape.default, weight, [out, channels]), [1, 0])
    if bias is None:
        y = b(aten.mm.default, rows, matrix)
    else:
        y = b(aten.addmm.default, bias, rows, matrix)
    y = b(aten.reshape.default, y, [n, *spatial, out])
    return b(aten.permute.default, y, [0, rank + 1, *range(1, rank + 1)])


def _pays(target: Target, *, moved: Any, shape: Sequence[int], **_: Any) -> Verdict:
    times = repetition(moved, shape)
    if times < LEAST_REPETITION:
        return Verdict(False, f"the input has only {times:.3g} times the pixels that it is made of")
    return Verdict(True, f"computed once for each pixel of the source, not for its {times:.3g} copies")


LOWERINGS = (Lowering("before_upsampling", pays=_pays, write=write),)
