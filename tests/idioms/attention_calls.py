"""Attention in all its forms, and graphs that hold it alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.rewriting import Rewritten, rewrite

aten = torch.ops.aten
sdpa = F.scaled_dot_product_attention
BF16 = torch.bfloat16


def operands(
    *shape: int, keys: int | None = None, width: int | None = None, dtype: torch.dtype = BF16
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    batch, heads, queries, size = shape or (1, 2, 36, 16)
    length = keys or queries
    return (
        torch.randn(batch, heads, queries, size).to(dtype),
        torch.randn(batch, heads, length, size).to(dtype),
        torch.randn(batch, heads, length, width or size).to(dtype),
    )


def run(fn: Any, *args: Any, **options: Any) -> Rewritten:
    """tune_seconds: nothing is timed on the GPU that is not there."""
    given = {"idioms": "attention", "tune_seconds": 0, **options}
    return rewrite(fn, *args, options=given, runs=False)


def flash(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    return aten._scaled_dot_product_flash_attention(q, k, v, **how)[0]  # type: ignore[no-any-return]


def efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    found: Tensor = aten._scaled_dot_product_efficient_attention(q, k, v, bias, False, **how)[0]
    return found


def cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    found: Tensor = aten._scaled_dot_product_cudnn_attention(q, k, v, bias, False, **how)[0]
    return found


def spelled(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """As torch decomposes it where it has no kernel."""
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q, k, v, **how)


def exact(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    return sdpa(q.double(), k.double(), v.double(), bias if bias is None else bias.double(), **how)


CHUNKED = {"lowering": {"attention": "chunked"}}
