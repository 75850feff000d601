"""The spellings of a rotation as diffusers and transformers write them, and the rotation in
float64.

Each takes x [B, S, H, D] (or in its own layout) and its own form of table, made from angles [S,
D/2].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def p1(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """FLUX: stacked pairs, tables [S, D] with each entry twice."""
    cos, sin = cos[None, :, None], sin[None, :, None]
    real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def p1_head_major(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same on [B, H, S, D]."""
    x = x.transpose(1, 2)
    cos, sin = cos[None, None], sin[None, None]
    real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype).transpose(1, 2)


def p1f(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LTX: all heads' channels as one, tables [B, S, H * D]."""
    real, imaginary = x.unflatten(2, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def p2(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Wan: slice assignment."""
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[None, :, None, 0::2], sin[None, :, None, 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(x)


def helios(x: Tensor, both: Tensor) -> Tensor:
    """Slice assignment from one table [S, 2 D], sliced anew for every use."""
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = both[None, :, None].chunk(2, dim=-1)
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * cos[..., 0::2] - x2 * sin[..., 1::2]
    out[..., 1::2] = x1 * sin[..., 1::2] + x2 * cos[..., 0::2]
    return out.type_as(x)


def p3(x: Tensor, freqs: Tensor) -> Tensor:
    """Z-Image, Qwen-Image: complex64; Lumina2: complex128 tables."""
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs[:, None]).flatten(3).type_as(x)


def p3_double(x: Tensor, freqs: Tensor) -> Tensor:
    """AnyFlow, the original Wan: everything in complex128, on [B, H, S, D]."""
    x = x.transpose(1, 2)
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * freqs[None, None]).flatten(3).type_as(x).transpose(1, 2)


def p4(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Cosmos: half-split on a transposed view."""
    x = x.transpose(1, 2)
    x1, x2 = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
    turned = torch.cat([-x2, x1], dim=-1)
    out = (x.float() * cos[None, None] + turned.float() * sin[None, None]).to(x.dtype)
    return out.transpose(1, 2)


def p4b(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama: half-split by slices, in the tables' dtype."""
    x = x.transpose(1, 2)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return ((x * cos[None, None]) + (turned * sin[None, None])).to(x.dtype).transpose(1, 2)


def p5(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Mochi: a table per head, [S, H, D/2]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    a, b = (even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)
    return torch.stack([a, b], dim=-1).flatten(-2)


def p6(x: Tensor, matrices: Tensor) -> Tensor:
    """Kandinsky 5: 2x2 matrices [B, S, 1, D/2, 2, 2], bfloat16 result."""
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2).float()
    return (matrices * pairs).sum(dim=-1).reshape(*x.shape).to(torch.bfloat16)


def p7(x: Tensor, matrices: Tensor) -> Tensor:
    """HiDream, the original FLUX: columns of 2x2 matrices."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
    return (
        (matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1])
        .reshape(*x.shape)
        .type_as(x)
    )


def p8(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LTX-2: addcmul_ on views; x [B, S, H * D], tables [B, H, S, D/2]."""
    batch, heads, tokens, half = cos.shape
    wide = x.reshape(batch, tokens, heads, -1).swapaxes(1, 2)
    split = wide.reshape(*wide.shape[:-1], 2, half).float()
    first, second = split[..., :1, :], split[..., 1:, :]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    out = split * cos
    out[..., :1, :].addcmul_(-sin, second)
    out[..., 1:, :].addcmul_(sin, first)
    out = out.reshape(*out.shape[:-2], 2 * half).swapaxes(1, 2).reshape(batch, tokens, -1)
    return out.to(x.dtype)


def first_channels(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Ernie, MiniMax: only the first channels are rotated, half-split."""
    width = cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    a, b = part.chunk(2, dim=-1)
    cos, sin = cos[None, :, None].to(x.dtype), sin[None, :, None].to(x.dtype)
    return torch.cat([part * cos + torch.cat([-b, a], dim=-1) * sin, rest], dim=-1)


def first_tokens(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """HunyuanVideo's single blocks: the text at the end is not rotated."""
    image = cos.shape[0]
    return torch.cat([p1(x[:, :image], cos, sin), x[:, image:]], dim=1)


def last_tokens(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """CogVideoX: written back in place behind the text, on [B, H, S, D]."""
    x = x.transpose(1, 2) * 1
    text = x.shape[2] - cos.shape[0]
    x[:, :, text:] = p1_head_major(x[:, :, text:].transpose(1, 2), cos, sin).transpose(1, 2)
    return x.transpose(1, 2)


@dataclass(frozen=True)
class Spelling:
    """rotate: the function. tables: its tables from angles [S, D/2], x's shape [B, S, H, D] and
    dtype.
    """

    rotate: Callable[..., Tensor]
    tables: Callable[[Tensor, tuple[int, ...], torch.dtype], tuple[Tensor, ...]]
    interleaved: bool = True
    flat: bool = False
    width: Callable[[int], int] = lambda d: d
    tokens: Callable[[int], slice] = lambda s: slice(None)
    out_dtype: torch.dtype | None = None
    fp64: bool = False

    @property
    def name(self) -> str:
        return self.rotate.__name__


def doubled(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    theta = angles.repeat_interleave(2, dim=-1)
    return theta.cos(), theta.sin()


def halves(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    theta = torch.cat([angles, angles], dim=-1)
    return theta.cos(), theta.sin()


def halves_of_x(angles: Tensor, shape: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    cos, sin = halves(angles)
    return cos.to(dtype), sin.to(dtype)


def chunked(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return (torch.cat(doubled(angles), dim=-1),)


def unit(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return (torch.polar(torch.ones_like(angles), angles),)


def unit_double(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return unit(angles.double())


def per_head(angles: Tensor, shape: tuple[int, ...], *_: Any) -> tuple[Tensor, ...]:
    theta = angles[:, None] * torch.ones(shape[2], 1)
    return theta.cos(), theta.sin()


def flat(angles: Tensor, shape: tuple[int, ...], *_: Any) -> tuple[Tensor, ...]:
    theta = angles.repeat_interleave(2, dim=-1).repeat(1, shape[2])
    return theta.cos()[None], theta.sin()[None]


def split(angles: Tensor, shape: tuple[int, ...], *_: Any) -> tuple[Tensor, ...]:
    theta = angles.expand(shape[0], shape[2], *angles.shape).contiguous()
    return theta.cos(), theta.sin()


def matrices(angles: Tensor, *_: Any) -> tuple[Tensor, ...]:
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1)
    return (rows.unflatten(-1, (2, 2))[None, :, None],)


SPELLINGS = (
    Spelling(p1, doubled),
    Spelling(p1_head_major, doubled),
    Spelling(p1f, flat, flat=True),
    Spelling(p2, doubled),
    Spelling(helios, chunked),
    Spelling(p3, unit),
    Spelling(p4, halves, interleaved=False),
    Spelling(p4b, halves_of_x, interleaved=False),
    Spelling(p5, per_head),
    Spelling(p6, matrices, out_dtype=torch.bfloat16),
    Spelling(p7, matrices),
    Spelling(p8, split, interleaved=False, flat=True),
    Spelling(first_channels, halves, interleaved=False, width=lambda d: d // 2),
    Spelling(first_tokens, doubled, tokens=lambda s: slice(0, s - 3)),
    Spelling(last_tokens, doubled, tokens=lambda s: slice(3, None)),
)
DOUBLE = (Spelling(p3, unit_double, fp64=True), Spelling(p3_double, unit_double, fp64=True))


@dataclass(frozen=True)
class Example:
    """What a spelling is called with, and what it gives: exact in float64, original in
    eager torch.
    """

    args: tuple[Tensor, ...]
    original: Tensor
    exact: Tensor


def example(
    spelling: Spelling,
    batch: int,
    tokens: int,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> Example:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, heads, channels, generator=generator).to(dtype)
    rows = len(range(tokens)[spelling.tokens(tokens)])
    angles = torch.rand(rows, spelling.width(channels) // 2, generator=generator) * 6.28
    tables = spelling.tables(angles, tuple(x.shape), dtype)
    args = (x.flatten(2) if spelling.flat else x, *tables)
    exact = rotated(x, angles, tables, spelling)
    return Example(
        args,
        spelling.rotate(*(a.clone() for a in args)),
        exact.flatten(2) if spelling.flat else exact,
    )


def rotated(x: Tensor, angles: Tensor, tables: tuple[Tensor, ...], spelling: Spelling) -> Tensor:
    """In float64, from the very entries that the spelling's tables hold."""
    cos, sin = _entries(angles, tables)
    out, width, tokens = (
        x.double().clone(),
        spelling.width(x.shape[-1]),
        spelling.tokens(x.shape[1]),
    )
    part = out[:, tokens, :, :width].clone()
    a, b = (part[..., 0::2], part[..., 1::2]) if spelling.interleaved else part.chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    joined = (
        torch.stack(turned, dim=-1).flatten(-2)
        if spelling.interleaved
        else torch.cat(turned, dim=-1)
    )
    out[:, tokens, :, :width] = joined
    return out


def _entries(angles: Tensor, tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    if tables[0].is_complex():
        return tables[0].real.double()[:, None], tables[0].imag.double()[:, None]
    dtype = tables[0].dtype
    return angles.cos().to(dtype).double()[:, None], angles.sin().to(dtype).double()[:, None]
