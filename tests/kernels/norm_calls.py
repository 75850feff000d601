"""Norms by the kernel and by torch, and numbers to take them of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.kernel_calls import fused_norm

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = [FP32, FP16, BF16]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, **options: Any) -> Tensor:
    """RMSNorm alone."""
    outs, _ = fused_norm(x, kind="rms", eps=eps, weight=weight, **options)
    return outs[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and the sum itself."""
    options.setdefault("sum_dtype", x.dtype)
    outs, total = fused_norm(x, kind="rms", eps=eps, branch=residual, weight=weight, **options)
    assert total is not None
    return outs[0], total


def normal(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def doubles(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.double() for t in tensors)
