"""The rotation and the norm in plain torch, in any precision: what the rotary kernels are
held to.
"""

import torch
from torch import Tensor


def split_pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    return (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)


def join_pairs(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return torch.stack([first, second], dim=-1).flatten(-2)
    return torch.cat([first, second], dim=-1)


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, width: int, wide: torch.dtype
) -> Tensor:
    """x [B, S, H, D] with its first `width` channels rotated, computed and returned in `wide`."""
    x, cos, sin = x.to(wide), cos.to(wide), sin.to(wide)
    first, second = split_pairs(x[..., :width], interleaved)
    if cos.shape[-1] == width:
        (cos1, cos2), (sin1, sin2) = split_pairs(cos, interleaved), split_pairs(sin, interleaved)
    else:
        cos1, cos2, sin1, sin2 = cos, cos, sin, sin
    turned = join_pairs(first * cos1 - second * sin1, second * cos2 + first * sin2, interleaved)
    return torch.cat([turned, x[..., width:]], dim=-1)


def assert_is_the_formula(
    got: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, width: int
) -> None:
    """`got` is the rotation of x computed in float32 and rounded once to got's dtype: bit for bit.

    On a GPU the compiler makes a fused multiply-add of a * b - c * d, which leaves out the rounding
    of one of the products. Allowed there: that product's half unit, the unit by which the result
    may then round otherwise, and one of got's dtype where that is narrower. What is not rotated is
    a copy there, too.
    """
    expected = rotate(x, cos, sin, interleaved, width, torch.float32).to(got.dtype)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if not torch.cuda.is_available():
        assert torch.equal(got, expected)
        return
    x, cos, sin = x.double().abs(), cos.double().abs(), sin.double().abs()
    products = torch.maximum(
        *(rotate(x, cos, s, interleaved, width, torch.float64) for s in (sin, -sin))
    )
    allowed = 1.5 * torch.finfo(torch.float32).eps * products
    if got.dtype != torch.float32:
        allowed += (
            torch.finfo(got.dtype).eps * expected.double().abs()
            + torch.finfo(got.dtype).smallest_normal
        )
    allowed[..., width:] = 0.0
    excess = (got.double() - expected.double()).abs() - allowed
    assert bool((excess <= 0).all()), (
        f"off by {excess.max():.3g} more than fused multiply-adds explain"
    )


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    across_heads: bool,
    round_before_weight: bool,
    round_after: bool,
    wide: torch.dtype,
) -> Tensor:
    """RMSNorm of x [B, S, H, D] in `wide`, rounded to x's dtype where asked."""
    dims = (-2, -1) if across_heads else (-1,)
    v = x.to(wide)
    y = v * torch.rsqrt(v.square().mean(dims, keepdim=True) + eps)
    if round_before_weight:
        y = y.to(x.dtype).to(wide)
    if weight is not None:
        y = y * weight.to(wide).view(x.shape[-2:] if across_heads else x.shape[-1:])
    return y.to(x.dtype).to(wide) if round_after else y


def tables(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Unrelated cos and sin values [batch, tokens, heads, width]: no two of a pair agree by
    accident.
    """
    return tuple(torch.randn(batch, tokens, heads, width).to(dtype) for _ in range(2))  # type: ignore[return-value]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x [B, S, H, D] with the same values in another memory layout."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "head-major":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused qkv":
        return torch.cat([x, torch.zeros_like(x), x], dim=2)[:, :, : x.shape[2]]
    if layout == "channel-strided":
        return torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0]
    raise ValueError(layout)


LAYOUTS = ("contiguous", "head-major", "fused qkv", "channel-strided")
