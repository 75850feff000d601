"""Calls of conv3d: small ones by hand, and any that Hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels import register_lowerings
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from rocm_passes.target import Target

register_lowerings()
LOWERINGS = CONV3D.lowerings
BY_NAME = {low.name: low for low in LOWERINGS}
CPU = Target("cpu", "", "CPU", "2.11", None)


def call(
    frames: tuple[int, ...] = (3,),
    *,
    channels: int = 4,
    out: int = 5,
    size: tuple[int, int] = (5, 6),
    batch: int = 1,
    kernel: tuple[int, int, int] = (3, 3, 3),
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int, int] = (1, 1, 1),
    zeros: tuple[int, int] = (0, 0),
    groups: int = 1,
    bias: bool = True,
    channels_last: bool = False,
    compute: torch.dtype | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Conv3d:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    return Conv3d(
        x=tuple(normal(batch, channels, t, *size) for t in frames),
        weight=normal(out, channels // groups, *kernel) / (channels * kernel[0]) ** 0.5,
        bias=normal(out) if bias else None,
        zeros=zeros,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels_last=channels_last,
        compute=compute,
        absorbed=True,
    )


def with_tensors(change: Callable[[torch.Tensor], torch.Tensor], c: Conv3d) -> Conv3d:
    """The call with every tensor changed."""
    bias = None if c.bias is None else change(c.bias)
    return replace(c, x=tuple(change(piece) for piece in c.x), weight=change(c.weight), bias=bias)


def plain(c: Conv3d) -> torch.Tensor:
    """What the graph computed before: everything padded and joined by copies."""
    h, w = c.padding
    x = F.pad(torch.cat(c.x, 2), [w, w, h, h, *c.zeros])
    return F.conv3d(x, c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


def has_output(c: Conv3d) -> bool:
    x = c.x[0]
    sizes = (
        sum(p.shape[2] for p in c.x) + sum(c.zeros),
        *(s + 2 * p for s, p in zip(x.shape[3:], c.padding, strict=True)),
    )
    extents = [d * (k - 1) + 1 for d, k in zip(c.dilation, c.weight.shape[2:], strict=True)]
    return all(s >= e for s, e in zip(sizes, extents, strict=True))


small = st.integers(1, 3)


@st.composite
def calls(draw: Any) -> Conv3d:
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.tuples(small, small, small))
    ones = st.just((1, 1, 1))
    c = call(
        draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)),
        channels=groups * draw(small),
        out=groups * draw(small),
        size=draw(st.tuples(st.integers(2, 6), st.integers(2, 6))),
        batch=draw(st.integers(1, 2)),
        kernel=kernel,
        stride=draw(st.one_of(ones, st.just(kernel), st.tuples(small, small, small))),
        padding=draw(st.one_of(st.just((0, 0)), st.tuples(st.integers(0, 2), st.integers(0, 2)))),
        dilation=draw(st.one_of(ones, st.tuples(small, small, small))),
        zeros=draw(st.one_of(st.just((0, 0)), st.tuples(st.integers(0, 3), st.integers(0, 2)))),
        groups=groups,
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
    )
    assume(has_output(c))
    return c


AMD = Target("amd", "gfx942", "MI300X", "2.11", "3.6")
BF16 = torch.bfloat16
STEPS = (torch.ops.aten.convolution.default, torch.ops.aten.cat.default, COMPUTED.overload)


class Counting(Eager):
    """Notes the rank and dtype of each convolution's input, and the order of what makes memory."""

    def __init__(self) -> None:
        self.convolutions: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.steps: list[str] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target in STEPS and not (target is torch.ops.aten.cat.default and not self.steps):
            self.steps.append(target._opname)
        if target is torch.ops.aten.convolution.default:
            self.convolutions.append(args[0].ndim)
            self.dtypes.append(args[0].dtype)
        return super().__call__(target, *args, **kwargs)
