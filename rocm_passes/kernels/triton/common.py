"""What the Triton kernels share: the device guard, dtype names, exact roots, SiLU."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton kernels carry no Python types: their arguments are device values.)

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_TYPE: Mapping[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
"""The floating dtypes that the kernels read and write, and Triton's names for them."""

INT32_MAX = 2**31 - 1


def device_guard(x: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the current device: make that x's own. CPU tensors (interpreter) need no
    guard.
    """
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch_warps(num_warps: int, x: Tensor) -> int:
    """Warps for a tile that was chosen for warps of 32 lanes: half as many where a warp has 64
    (CDNA).

    The same lanes then cover the tile, and each still moves 16 bytes at a time.
    """
    if x.is_cuda and torch.cuda.get_device_properties(x.device).warp_size == 64:
        return max(1, num_warps // 2)
    return num_warps


def check_dtype(name: str, t: Tensor) -> None:
    """Raise TypeError unless `t` is float32, float16 or bfloat16."""
    if t.dtype not in TRITON_TYPE:
        raise TypeError(f"{name} is {t.dtype}; float32, float16 or bfloat16 is needed")


def broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    """A tensor of `shape` can be expanded to `target`."""
    tail = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(s in (1, t) for s, t in zip(shape, tail, strict=True))


def power_of_two_divisor(n: int) -> int:
    """The greatest power of two that divides n > 0."""
    return n & -n


@triton.jit
def exact_sqrt(v):
    """sqrt(v), rounded correctly. Triton 3.6 computes AMD's from the hardware's rsqrt, which takes
    a subnormal number for zero and gives inf: such a number is scaled by powers of two, exactly.
    """
    small = v < 1e-30
    root = tl.sqrt_rn(tl.where(small, v * 1.8446744073709552e19, v))  # 2^64
    return tl.where(small, root * 2.3283064365386963e-10, root)  # 2^-32


@triton.jit
def exact_rsqrt(v):
    """1/sqrt(v), each step rounded correctly: the hardware's rsqrt is two units off, too much for
    fp32 output.
    """
    return tl.div_rn(tl.full(v.shape, 1.0, tl.float32), exact_sqrt(v))


@triton.jit
def inverse_rms(
    squares, N: tl.constexpr, EPS: tl.constexpr, dtype: tl.constexpr, EPS_KIND: tl.constexpr
):
    """1 / sqrt(squares / N + EPS), for results of `dtype`: each step rounded correctly where that
    is fp32.

    EPS_KIND "clamp": 1 / sqrt(max(squares / N, EPS)); "after_root": 1 / (sqrt(squares / N) + EPS).
    """
    if dtype == tl.float32:
        mean = tl.div_rn(squares, tl.full(squares.shape, N, tl.float32))
    else:
        mean = squares * (1.0 / N)
    if EPS_KIND == "after_root":
        root = exact_sqrt(mean) + EPS
        rstd = tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)
    else:
        if EPS_KIND == "clamp":
            mean = tl.maximum(mean, EPS, propagate_nan=tl.PropagateNan.ALL)
        else:
            mean = mean + EPS
        # AMD's rsqrt takes a subnormal number for zero, and gives inf. From EPS on, none is one.
        if dtype == tl.float32 or EPS < 1.1754944e-38:
            rstd = exact_rsqrt(mean)
        else:
            rstd = tl.rsqrt(mean)
    return rstd


@triton.jit
def inverse_length(squares, EPS: tl.constexpr, dtype: tl.constexpr):
    """1 / max(sqrt(squares), EPS), for results of `dtype`: each step rounded correctly where that
    is fp32.
    """
    # The hardware takes a subnormal sum for zero. Where EPS is the length of such a row, that
    # changes nothing.
    if dtype == tl.float32 or EPS < 1e-18:
        length = tl.maximum(exact_sqrt(squares), EPS, propagate_nan=tl.PropagateNan.ALL)
        inverse = tl.div_rn(tl.full(length.shape, 1.0, tl.float32), length)
    else:
        inverse = tl.minimum(tl.rsqrt(squares), 1.0 / EPS, propagate_nan=tl.PropagateNan.ALL)
    return inverse


@triton.jit
def silu(v, PRECISE: tl.constexpr):
    """v / (1 + exp(-v)) in fp32.

    PRECISE (for fp32 results) carries the low half of -v*log2(e) into the exponential: without it
    the relative error grows with |v|, to 1e-6 at v = -10.
    """
    if PRECISE:
        LOG2E: tl.constexpr = 1.4426950408889634
        LOG2E_LOW: tl.constexpr = 1.925963033500e-8  # log2(e) - fp32(log2(e))
        high = -v * LOG2E
        low = tl.fma(-v, tl.full(v.shape, LOG2E, tl.float32), -high) - v * LOG2E_LOW
        grown = tl.exp2(high)
        # Out there the exponential is 0 or inf, and the correction would make inf - inf of it.
        e = tl.where(tl.abs(high) >= 128.0, grown, tl.fma(grown, low * 0.6931471805599453, grown))
        y = tl.div_rn(v, 1.0 + e)
    else:
        y = v / (1.0 + tl.exp(-v))
    return y
