"""The spellings of an RMSNorm as torch, diffusers and transformers write them, and the norm in
float64.

Each takes x [..., D] and a weight [D]; those of `BIASED` a bias [D] as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.idioms.norm_cases import draw

D = 48


def torch_norm(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-6)


def diffusers(x: Tensor, w: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(w.dtype) * w


def no_weight(x: Tensor, w: Tensor) -> Tensor:
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def mochi(x: Tensor, w: Tensor) -> Tensor:
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-5) * w.float()).to(x.dtype)


def llama(x: Tensor, w: Tensor) -> Tensor:
    f = x.to(torch.float32)
    return w * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def t5(x: Tensor, w: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return w * (x * torch.rsqrt(variance + 1e-6)).to(w.dtype)


def gemma(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + w.float())).to(x.dtype)


def krea(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.rms_norm(x.float(), (x.shape[-1],), w.float() + 1.0, 1e-6).to(x.dtype)


def weight_first_inside(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (w.float() * f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def squared_by_mul(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(1e-6 + (f * f).mean(-1, keepdim=True)) * w.float()).to(x.dtype)


SPELLINGS = [
    torch_norm,
    diffusers,
    no_weight,
    mochi,
    llama,
    t5,
    gemma,
    krea,
    weight_first_inside,
    squared_by_mul,
]


def exact(spelling: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The norm in float64: no rounding anywhere."""
    wide, eps = x.double(), 1e-5 if spelling is mochi else 1e-6
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if spelling is no_weight:
        return y
    return y * (w.double() + (1.0 if spelling in (gemma, krea) else 0.0))


def biased(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """diffusers' RMSNorm with bias=True: in bf16, it rounds before the weight, before the bias and
    behind it.
    """
    return diffusers(x, w) + b


def biased_in_float32(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    f = x.float()
    y = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float() + b.float()
    return y.to(x.dtype)


def bias_first(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return b + torch_norm(x, w)


def bias_without_weight(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return no_weight(x, w) + b


def biased_gemma(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return gemma(x, w) + b


#: And what of each is the norm without its bias.
BIASED = {
    biased: diffusers,
    biased_in_float32: torch_norm,
    bias_first: torch_norm,
    bias_without_weight: no_weight,
    biased_gemma: gemma,
}
Biased = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_tables(
    dtype: torch.dtype, table_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias"""
    x, tables = (
        draw(2, 7, D, dtype=dtype),
        (draw(D, dtype=table_dtype or dtype, seed=i) for i in (1, 2)),
    )
    return x, *tables  # type: ignore[return-value]
