"""What the norms benchmark times: each idiom's spelling in a model, and our kernel for it, at
production shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.bench.norm_shapes import Shape, distinct
from rocm_passes.kernels.triton.norms.channel_norm_launch import channel_norm
from rocm_passes.kernels.triton.norms.group_norm_launch import group_norm
from rocm_passes.kernels.triton.norms.norm import Norm, Operands, fused_norm
from rocm_passes.ops.channel_norm import ChannelNorm
from rocm_passes.ops.group_norm import GroupNorm

Result = tuple[Tensor, ...]
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """One idiom at one shape. `original` is the model's spelling, and the reference when its inputs
    are float64. `models`: those that have a call of this `shape`, where the case is there for them.
    """

    name: str
    inputs: Callable[[], Result]
    original: Callable[..., Result]
    ours: Callable[..., Result]
    models: tuple[str, ...] = ()
    shape: Shape = ()


def cases(only: str = "") -> list[Case]:
    """All of them, or those whose name or one of whose models contains the text."""
    every = (*row_cases(), *chain_cases(), *branch_norm_cases(), *channel_cases(), *group_cases())
    return [c for c in every if any(only in text for text in (c.name, *c.models))]


def wide(t: Tensor) -> Tensor:
    """`t.float()`, but float64 stays, so that the original serves as its own reference."""
    return t if t.dtype == torch.float64 else t.float()


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=FP32).to(dtype)


def diffusers_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    variance = wide(x).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype) * weight


def row_cases() -> Iterator[Case]:
    def torch_rms(x: Tensor, w: Tensor) -> Result:
        return (F.rms_norm(x, (x.shape[-1],), w, 1e-6),)

    def our_rms(x: Tensor, w: Tensor) -> Result:
        return (fused_norm(Operands(x, weight=w), Norm("rms", 1e-6))[0][0],)

    for shape, models in distinct().items():
        yield Case(
            f"RMSNorm {list(shape)}",
            lambda shape=shape: (normal(*shape), normal(shape[-1])),
            torch_rms,
            our_rms,
            models,
            shape,
        )
    yield Case(
        "RMSNorm [1, 4608, 48, 128], a slice of a fused projection (FLUX.2)",
        lambda: (normal(1, 4608, 9 * 6144)[..., :6144].unflatten(-1, (48, 128)), normal(128)),
        torch_rms,
        our_rms,
    )
    yield Case(
        "RMSNorm [32760, 5120], diffusers' spelling",
        lambda: (normal(32760, 5120), normal(5120)),
        lambda x, w: (diffusers_rms(x, w, 1e-6),),
        lambda x, w: (
            fused_norm(Operands(x, weight=w), Norm("rms", 1e-6, round_before_weight=True))[0][0],
        ),
    )
    yield Case(
        "fp32 RMSNorm [4608, 3840]",
        lambda: (normal(4608, 3840, dtype=FP32), normal(3840, dtype=FP32)),
        torch_rms,
        our_rms,
    )

    def add_then_norm(x: Tensor, r: Tensor, w: Tensor) -> Result:
        s = x + r
        return F.rms_norm(s, (s.shape[-1],), w, 1e-6), s

    def add_rms(x: Tensor, r: Tensor, w: Tensor) -> Result:
        norm = Norm("rms", 1e-6, sum_dtype=x.dtype, round_sum=True)
        outs, total = fused_norm(Operands(x, r, weight=w), norm)
        assert total is not None
        return outs[0], total

    yield Case(
        "add + RMSNorm [32760, 5120]",
        lambda: (normal(32760, 5120), normal(32760, 5120), normal(5120)),
        add_then_norm,
        add_rms,
    )


def chain_cases() -> Iterator[Case]:
    def wan(x: Tensor, y: Tensor, g: Tensor, scale: Tensor, shift: Tensor) -> Result:
        s = (wide(x) + y * g).to(x.dtype)
        n = F.layer_norm(wide(s), (s.shape[-1],), None, None, 1e-6)
        return (n * (1 + scale) + shift).to(x.dtype), s

    def our_wan(x: Tensor, y: Tensor, g: Tensor, scale: Tensor, shift: Tensor) -> Result:
        (out,), s = fused_norm(
            Operands(x, y, g, scale0=scale, shift0=shift),
            Norm("layer", 1e-6, modulations=1, sum_dtype=x.dtype, round_sum=True),
        )
        assert s is not None
        return out, s

    for tokens, width, table in [(32760, 5120, 1), (27280, 3072, 27280)]:
        per = "a token" if table > 1 else "a sample"
        yield Case(
            f"gated residual + LayerNorm + modulate [1, {tokens}, {width}], fp32 tables {per}",
            lambda t=tokens, w=width, m=table: (
                normal(1, t, w), normal(1, t, w), *(normal(1, m, w, dtype=FP32) for _ in range(3))
            ),
            wan,
            our_wan,
        )  # fmt: skip

    def flux(x: Tensor, scale: Tensor, shift: Tensor) -> Result:
        n = F.layer_norm(x, (x.shape[-1],), None, None, 1e-6)
        return (n * (1 + scale) + shift,)

    yield Case(
        "LayerNorm + modulate [1, 4608, 3072]",
        lambda: (normal(1, 4608, 3072), normal(1, 1, 3072), normal(1, 1, 3072)),
        flux,
        lambda x, scale, shift: tuple(
            fused_norm(Operands(x, scale0=scale, shift0=shift), Norm("layer", 1e-6, modulations=1))[
                0
            ]
        ),
    )


def _z_image(x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, scale: Tensor) -> Result:
    s = x + g * diffusers_rms(a, wa, 1e-5)
    return diffusers_rms(s, w, 1e-5) * scale, s


def _our_z_image(x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, scale: Tensor) -> Result:
    norm = Norm("rms", 1e-5, 1e-5, modulations=1, scale_offset=0.0)
    (out,), s = fused_norm(
        Operands(x, a, g, wa, weight=w, scale0=scale),
        replace(norm, sum_dtype=x.dtype, round_sum=True),
    )
    assert s is not None
    return out, s


def _gemma_rms(x: Tensor, w: Tensor) -> Tensor:
    f = wide(x)
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + wide(w))).to(x.dtype)


def _gemma(x: Tensor, a: Tensor, wa: Tensor, w: Tensor) -> Result:
    s = x + _gemma_rms(a, wa)
    return _gemma_rms(s, w), s


def _our_gemma(x: Tensor, a: Tensor, wa: Tensor, w: Tensor) -> Result:
    norm = Norm("rms", 1e-6, 1e-6, branch_weight_offset=1.0, weight_offset=1.0)
    (out,), s = fused_norm(
        Operands(x, a, branch_weight=wa, weight=w),
        replace(norm, sum_dtype=x.dtype, round_sum=True),
    )
    assert s is not None
    return out, s


def _residual(x: Tensor, a: Tensor, g: Tensor, wa: Tensor) -> Result:
    return (x + g * diffusers_rms(a, wa, 1e-5),)


def _our_residual(x: Tensor, a: Tensor, g: Tensor, wa: Tensor) -> Result:
    _, s = fused_norm(Operands(x, a, g, wa), Norm("none", branch_eps=1e-5, sum_dtype=x.dtype))
    assert s is not None
    return (s,)


def _branch_inputs(tokens: int, width: int, gated: bool, weights: int, scaled: bool) -> Result:
    streams = normal(1, tokens, width), normal(1, tokens, width)
    tables = [normal(1, 1, width)] * gated + [normal(width) for _ in range(weights)]
    return *streams, *tables, *([normal(1, 1, width)] * scaled)


def branch_norm_cases() -> Iterator[Case]:
    """A branch with a norm of its own, by rows and columns: what the rule of fused_norm is from."""
    for name, original, ours, given in (
        ("x + g * RMSNorm(a); RMSNorm * scale", _z_image, _our_z_image, (True, 2, True)),
        ("x + RMSNorm(a) * (1 + w); RMSNorm * (1 + w)", _gemma, _our_gemma, (False, 2, False)),
        ("x + g * RMSNorm(a)", _residual, _our_residual, (True, 1, False)),
    ):
        for width in (2304, 3840):
            for tokens in (512, 1024, 2048, 3072, 4096, 4608):
                yield Case(
                    f"{name} [1, {tokens}, {width}]",
                    lambda t=tokens, w=width, given=given: _branch_inputs(t, w, *given),
                    original,
                    ours,
                )


def channel_cases() -> Iterator[Case]:
    def original(x: Tensor, gamma: Tensor) -> Result:
        n = F.normalize(wide(x), dim=1).to(x.dtype)
        return (F.silu(n * x.shape[1] ** 0.5 * gamma + 0.0),)

    def ours(x: Tensor, gamma: Tensor) -> Result:
        return (
            channel_norm(
                ChannelNorm(
                    x,
                    None,
                    gamma,
                    None,
                    form="l2",
                    eps=1e-12,
                    scale=x.shape[1] ** 0.5,
                    silu=True,
                    round_to=x.dtype,
                    rounds_between=False,
                    out_dtype=x.dtype,
                )
            ),
        )

    for shape in [
        (1, 96, 4, 480, 832),
        (1, 96, 4, 720, 1280),
        (1, 192, 4, 240, 416),
        (1, 384, 2, 120, 208),
    ]:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            yield Case(
                f"channel norm + SiLU {list(shape[1:])} {_name(layout)}",
                lambda s=shape, m=layout: (
                    normal(*s).to(memory_format=m), normal(s[1], 1, 1, 1)
                ),
                original,
                ours,
            )  # fmt: skip
    yield Case(
        "fp32 channel norm + SiLU [96, 4, 480, 832] contiguous",
        lambda: (normal(1, 96, 4, 480, 832, dtype=FP32), normal(96, 1, 1, 1, dtype=FP32)),
        original,
        ours,
    )


def group_cases() -> Iterator[Case]:
    def original(x: Tensor, w: Tensor, b: Tensor) -> Result:
        # In float64 too the batch is kept contiguous: eager's channels-last reduction is the less
        # exact one.
        return (F.silu(F.group_norm(x, 32, w, b, 1e-6)),)

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Result:
        call = GroupNorm(x, None, 32, w, b, 1e-6, True, None, None, False, x.dtype)
        return (group_norm(call),)

    for shape in [(1, 128, 1024, 1024), (1, 512, 128, 128)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            yield Case(
                f"GroupNorm(32) + SiLU {list(shape[1:])} {_name(layout)}",
                lambda s=shape, m=layout: (
                    normal(*s).to(memory_format=m),
                    normal(s[1]),
                    normal(s[1]),
                ),
                original,
                ours,
            )


def _name(layout: torch.memory_format) -> str:
    return "contiguous" if layout is torch.contiguous_format else "channels-last"
