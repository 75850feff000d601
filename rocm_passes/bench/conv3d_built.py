"""A Conv3d call: read from words, and built as models build it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

EXAMPLE = "384-384 3x3x3 2+1f 60x104"
WORDS = re.compile(
    r"(\d+)-(\d+) (\d+)x(\d+)x(\d+)(?:/(\d+)x(\d+)x(\d+))? (?:(\d+)z\+)?(?:(\d+)\+)?(\d+)f "
    r"(\d+)x(\d+)"
)

Built = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Call:
    """zeros, cached, frames: what stands end to end in time. height, width: the input's, without
    its padding.
    """

    channels: int
    out: int
    kernel: tuple[int, int, int]
    cached: int
    frames: int
    height: int
    width: int
    zeros: int = 0
    stride: tuple[int, int, int] = (1, 1, 1)

    @staticmethod
    def of(text: str) -> Call:
        """From words as in rocm_passes/bench/conv3d_calls.py. Raises ValueError."""
        found = WORDS.fullmatch(text.strip())
        if found is None:
            raise ValueError(f'{text!r} is no call; one is written as "{EXAMPLE}"')
        channels, out, kt, kh, kw, st, sh, sw, zeros, cached, *rest = (
            int(g or 0) for g in found.groups()
        )
        stride = (st, sh, sw) if found[6] else (1, 1, 1)
        if min(stride) < 1:
            raise ValueError(f"{text!r} has a stride of 0")
        call = Call(channels, out, (kt, kh, kw), cached, *rest, zeros, stride)
        if call.in_time < kt:
            raise ValueError(f"{text!r} has {call.in_time} frames, fewer than its kernel")
        return call

    @property
    def in_time(self) -> int:
        """Frames that the kernel moves over."""
        return self.zeros + self.cached + self.frames

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros above and below, left and right."""
        _, high, wide = (
            k // 2 if s == 1 else 0 for k, s in zip(self.kernel, self.stride, strict=True)
        )
        return high, wide

    @property
    def patches(self) -> bool:
        """Is it a patch embedding, as a transformer begins with?"""
        return self.kernel == self.stride != (1, 1, 1)

    def layout(self, vendor: str) -> str:
        """The layout that "auto" chooses in a model, which has more convolutions than this one.

        (Alone, a 1x1x1 convolution is no reason to go channels-last, and a patch embedding never
        is.)
        """
        return "channels_last" if vendor == "nvidia" and not self.patches else "as_is"

    def gib(self, dtype: torch.dtype) -> float:
        """Of input and output together, at most."""
        pixels = self.in_time * self.height * self.width
        return pixels * (self.channels + self.out) * dtype.itemsize / 2**30


def built(
    call: Call, channels_last: bool, dtype: torch.dtype, device: str
) -> tuple[Built, tuple[torch.Tensor, ...]]:
    """The convolution between pointwise neighbours, not compiled, and its inputs: the cached
    frames, the new ones.

    A patch embedding reads the model's own input, so nothing stands before it.
    """
    weight = torch.randn(call.out, call.channels, *call.kernel, device=device).to(dtype)
    weight /= weight[0].numel() ** 0.5
    bias = torch.randn(call.out, device=device).to(dtype)
    high, wide = call.padding
    pads = [wide, wide, high, high, call.zeros, 0]

    def frames(count: int) -> torch.Tensor:
        x = torch.randn(
            1, call.channels, count, call.height, call.width, device=device, dtype=dtype
        )
        return x.to(memory_format=torch.channels_last_3d) if channels_last else x

    def convolve(*inputs: torch.Tensor) -> torch.Tensor:
        *cache, x = inputs
        x = x if call.patches else F.silu(x)
        x = torch.cat([*cache, x], 2) if cache else x
        x = F.pad(x, pads) if any(pads) else x
        return F.conv3d(x, weight, bias, call.stride) + 1

    return convolve, tuple(frames(count) for count in (call.cached, call.frames) if count)


def compiled(
    call: Call, lowering: str | None, layout: str, dtype: torch.dtype, device: str
) -> tuple[Built, tuple[torch.Tensor, ...]]:
    """The same compiled, by plain Inductor where lowering is None; layout as the option of that
    name.
    """
    from rocm_passes.backend import rocm_diffusion
    from rocm_passes.target import Target

    layout = call.layout(Target.of_device(device).vendor) if layout == "auto" else layout
    convolve, inputs = built(call, layout == "channels_last", dtype, device)
    if lowering is None:
        return torch.compile(convolve, dynamic=False), inputs
    options: dict[str, Any] = {"layout": layout}
    if lowering != "auto":
        # Sums of taps in 16 bits are refused otherwise.
        options |= {
            "lowering": {"conv3d": lowering},
            "tune_seconds": 0,
            "rewrite_numerics": "fast",
        }
    return torch.compile(convolve, backend=rocm_diffusion, dynamic=False, options=options), inputs
