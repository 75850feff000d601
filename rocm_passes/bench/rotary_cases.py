"""The rotations of the models at production shapes: each model's spelling, ours, and inputs for
both.

Inputs are drawn on the GPU when a case is made, not before: the largest take gigabytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels.triton.rotary.qk_norm_rotary_launch import qk_norm_rotary
from rocm_passes.kernels.triton.rotary.rotary_launch import HeadNorms, Rotation, rotary_pair

INTERLEAVED = Rotation(interleaved=True)

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One idiom at one shape; `original` is the model's spelling, computing in `wide` where it
    upcasts.
    """

    name: str
    make: Callable[[], Inputs]
    original: Callable[..., Outputs]
    ours: Callable[..., Outputs]


# The models' spellings.


def rms_torch(x: Tensor, weight: Tensor, eps: float, wide: torch.dtype) -> Tensor:
    if wide == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return F.rms_norm(x.to(wide), (x.shape[-1],), weight.to(wide), eps)


def rms_diffusers(x: Tensor, weight: Tensor, eps: float, wide: torch.dtype) -> Tensor:
    variance = x.to(wide).pow(2).mean(-1, keepdim=True)
    y = x * torch.rsqrt(variance + eps)
    if wide == torch.float32:
        y = y.to(weight.dtype)
    return y * weight


def rope_slices(x: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype) -> Tensor:
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2].to(wide), sin[..., 1::2].to(wide)
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * c - x2 * s
    out[..., 1::2] = x1 * s + x2 * c
    return out.type_as(x)


def rope_complex(x: Tensor, freqs: Tensor, wide: torch.dtype) -> Tensor:
    z = torch.view_as_complex(x.to(wide).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs.unsqueeze(2)).flatten(3).type_as(x)


def rope_stack(x: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype) -> Tensor:
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imag, real], dim=-1).flatten(3)
    return (x.to(wide) * cos[None, :, None] + turned.to(wide) * sin[None, :, None]).to(x.dtype)


def rope_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-x2, x1], dim=-1) * sin


# Inputs.


def heads(tokens: int, count: int, channels: int = 128) -> Tensor:
    return torch.randn(1, tokens, count, channels, device="cuda").bfloat16()


def angles(tokens: int, channels: int = 128) -> Tensor:
    return torch.rand(tokens, channels // 2, device="cuda") * 6.28


def weight(size: int) -> Tensor:
    return (1 + 0.1 * torch.randn(size, device="cuda")).bfloat16()


def doubled(tokens: int) -> tuple[Tensor, Tensor]:
    theta = angles(tokens).repeat_interleave(2, dim=-1)
    return theta.cos(), theta.sin()


def unit(tokens: int) -> Tensor:
    theta = angles(tokens)
    return torch.polar(torch.ones_like(theta), theta)[None]


def parts(freqs: Tensor) -> tuple[Tensor, Tensor]:
    real = torch.view_as_real(freqs).unsqueeze(2)
    return real[..., 0], real[..., 1]


# Cases.


def wan_rope(tokens: int) -> Case:
    def make() -> Inputs:
        cos, sin = doubled(tokens)
        return heads(tokens, 40), heads(tokens, 40), cos[None, :, None], sin[None, :, None]

    def original(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype = torch.float32
    ) -> Outputs:
        return rope_slices(q, cos, sin, wide), rope_slices(k, cos, sin, wide)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
        return rotary_pair(q, k, cos[..., 0::2], sin[..., 1::2], INTERLEAVED)

    return Case(f"Wan RoPE q,k [1,{tokens},40,128]", make, original, ours)


def wan_norm_rope(tokens: int) -> Case:
    def make() -> Inputs:
        cos, sin = doubled(tokens)
        q, k = heads(tokens, 40).flatten(2), heads(tokens, 40).flatten(2)
        return q, k, cos[None, :, None], sin[None, :, None], weight(5120), weight(5120)

    def original(
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        wq: Tensor,
        wk: Tensor,
        wide: torch.dtype = torch.float32,
    ) -> Outputs:
        q, k = (rms_torch(x, w, 1e-6, wide).unflatten(2, (40, -1)) for x, w in ((q, wq), (k, wk)))
        return rope_slices(q, cos, sin, wide), rope_slices(k, cos, sin, wide)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wq: Tensor, wk: Tensor) -> Outputs:
        norms = HeadNorms(1e-6, 1e-6, across_heads=True, q_weight=wq, k_weight=wk)
        q, k = (x.unflatten(2, (40, -1)) for x in (q, k))
        return qk_norm_rotary(q, k, cos[..., 0::2], sin[..., 1::2], INTERLEAVED, norms)

    return Case(f"Wan norm + RoPE q,k [1,{tokens},40,128]", make, original, ours)


def complex_rope() -> Case:
    def make() -> Inputs:
        return heads(4608, 30), heads(4608, 30), unit(4608)

    def original(q: Tensor, k: Tensor, freqs: Tensor, wide: torch.dtype = torch.float32) -> Outputs:
        return rope_complex(q, freqs, wide), rope_complex(k, freqs, wide)

    def ours(q: Tensor, k: Tensor, freqs: Tensor) -> Outputs:
        return rotary_pair(q, k, *parts(freqs), INTERLEAVED)

    return Case("complex RoPE q,k [1,4608,30,128]", make, original, ours)


def norm_complex_rope(name: str, tokens: int, count: int, eps: float) -> Case:
    def make() -> Inputs:
        return heads(tokens, count), heads(tokens, count), unit(tokens), weight(128), weight(128)

    def original(
        q: Tensor,
        k: Tensor,
        freqs: Tensor,
        wq: Tensor,
        wk: Tensor,
        wide: torch.dtype = torch.float32,
    ) -> Outputs:
        return (
            rope_complex(rms_diffusers(q, wq, eps, wide), freqs, wide),
            rope_complex(rms_diffusers(k, wk, eps, wide), freqs, wide),
        )

    def ours(q: Tensor, k: Tensor, freqs: Tensor, wq: Tensor, wk: Tensor) -> Outputs:
        norms = HeadNorms(eps, eps, q_weight=wq, k_weight=wk, round_before_weight=True)
        return qk_norm_rotary(q, k, *parts(freqs), INTERLEAVED, norms)

    return Case(f"{name} norm + complex RoPE q,k [1,{tokens},{count},128]", make, original, ours)


def qwen_joint() -> Case:
    def make() -> Inputs:
        image, text = 6889, 512
        return (
            heads(text, 24), heads(text, 24), heads(image, 24), heads(image, 24), unit(text),
            unit(image),
            *(weight(128) for _ in range(4)),
        )  # fmt: skip

    def original(*given: Tensor, wide: torch.dtype = torch.float32) -> Outputs:
        tq, tk, q, k, tf, f, wtq, wtk, wq, wk = given
        tq, tk = (
            rope_complex(rms_diffusers(x, w, 1e-6, wide), tf, wide)
            for x, w in ((tq, wtq), (tk, wtk))
        )
        q, k = (
            rope_complex(rms_diffusers(x, w, 1e-6, wide), f, wide) for x, w in ((q, wq), (k, wk))
        )
        return torch.cat([tq, q], dim=1), torch.cat([tk, k], dim=1)

    def ours(*given: Tensor) -> Outputs:
        tq, tk, q, k, tf, f, wtq, wtk, wq, wk = given
        text = tq.shape[1]
        joint = q.new_empty(2, 1, text + q.shape[1], *q.shape[2:]).unbind(0)
        for a, b, freqs, wa, wb, rows in (
            (tq, tk, tf, wtq, wtk, slice(0, text)), (q, k, f, wq, wk, slice(text, None)),
        ):  # fmt: skip
            norms = HeadNorms(1e-6, 1e-6, q_weight=wa, k_weight=wb, round_before_weight=True)
            outs = joint[0][:, rows], joint[1][:, rows]
            qk_norm_rotary(a, b, *parts(freqs), INTERLEAVED, norms, outs=outs)
        return joint

    return Case(
        "Qwen-Image norm + RoPE, text and image, + cat [1,512+6889,24,128]", make, original, ours
    )


def flux_rope() -> Case:
    def make() -> Inputs:
        return heads(4608, 24), heads(4608, 24), *doubled(4608)

    def original(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype = torch.float32
    ) -> Outputs:
        return rope_stack(q, cos, sin, wide), rope_stack(k, cos, sin, wide)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
        return rotary_pair(q, k, cos[None, :, None], sin[None, :, None], INTERLEAVED)

    return Case("Flux stack RoPE q,k [1,4608,24,128]", make, original, ours)


def flux_joint() -> Case:
    """The double block: norm -> cat(text, image) -> RoPE."""
    text = 512

    def make() -> Inputs:
        return (
            heads(text, 24), heads(text, 24), heads(4096, 24), heads(4096, 24),
            *doubled(4096 + text),
            *(weight(128) for _ in range(4)),
        )  # fmt: skip

    def original(*given: Tensor, wide: torch.dtype = torch.float32) -> Outputs:
        tq, tk, q, k, cos, sin, wtq, wtk, wq, wk = given
        q = torch.cat([rms_torch(tq, wtq, 1e-6, wide), rms_torch(q, wq, 1e-6, wide)], dim=1)
        k = torch.cat([rms_torch(tk, wtk, 1e-6, wide), rms_torch(k, wk, 1e-6, wide)], dim=1)
        return rope_stack(q, cos, sin, wide), rope_stack(k, cos, sin, wide)

    def ours(*given: Tensor) -> Outputs:
        tq, tk, q, k, cos, sin, wtq, wtk, wq, wk = given
        joint = q.new_empty(2, 1, text + q.shape[1], *q.shape[2:]).unbind(0)
        cos, sin = cos[None, :, None], sin[None, :, None]
        for a, b, wa, wb, rows in (
            (tq, tk, wtq, wtk, slice(0, text)),
            (q, k, wq, wk, slice(text, None)),
        ):
            norms = HeadNorms(1e-6, 1e-6, q_weight=wa, k_weight=wb)
            outs = joint[0][:, rows], joint[1][:, rows]
            qk_norm_rotary(a, b, cos[:, rows], sin[:, rows], INTERLEAVED, norms, outs=outs)
        return joint

    return Case("Flux norm + cat + RoPE q,k [1,512+4096,24,128]", make, original, ours)


def norm_stack_rope(name: str, tokens: int, count: int, fused_qkv: bool) -> Case:
    norm = rms_torch if fused_qkv else rms_diffusers

    def make() -> Inputs:
        if fused_qkv:
            q, k, _ = heads(tokens, 3 * count).chunk(3, dim=2)
        else:
            q, k = heads(tokens, count), heads(tokens, count)
        return q, k, *doubled(tokens), weight(128), weight(128)

    def original(
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        wq: Tensor,
        wk: Tensor,
        wide: torch.dtype = torch.float32,
    ) -> Outputs:
        q, k = norm(q, wq, 1e-6, wide), norm(k, wk, 1e-6, wide)
        return rope_stack(q, cos, sin, wide), rope_stack(k, cos, sin, wide)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wq: Tensor, wk: Tensor) -> Outputs:
        norms = HeadNorms(1e-6, 1e-6, q_weight=wq, k_weight=wk, round_before_weight=not fused_qkv)
        cos, sin = (table[None, :, None] for table in (cos, sin))
        return qk_norm_rotary(q, k, cos, sin, INTERLEAVED, norms)

    return Case(f"{name} norm + stack RoPE q,k [1,{tokens},{count},128]", make, original, ours)


def half_split() -> Case:
    def make() -> Inputs:
        theta = angles(4608).repeat(1, 2)[None, :, None]
        return heads(4608, 30), heads(4608, 30), theta.cos().bfloat16(), theta.sin().bfloat16()

    def original(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype = torch.float32
    ) -> Outputs:
        return rope_half(q, cos, sin), rope_half(k, cos, sin)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
        return rotary_pair(q, k, cos, sin, Rotation(interleaved=False))

    return Case("half-split RoPE q,k, bf16 tables [1,4608,30,128]", make, original, ours)


def cases() -> list[Case]:
    return [
        wan_norm_rope(32760), wan_rope(32760), norm_complex_rope("Z-Image", 4608, 30, 1e-5),
        complex_rope(),
        half_split(), flux_rope(), flux_joint(), wan_norm_rope(75600), wan_rope(75600),
        norm_complex_rope("Qwen-Image", 6889, 24, 1e-6), qwen_joint(),
        norm_stack_rope("FLUX.2 fused qkv", 4608, 48, True),
        norm_stack_rope("HunyuanVideo", 118800, 24, False),
    ]  # fmt: skip
