"""Norms where they stand in a model, between matrix products or convolutions: ours against plain
Inductor.

    python -m rocm_passes.bench.norm_sites [--json FILE] [--only TEXT]

A kernel that wins alone may lose in its place, because an opaque call cuts what Inductor fuses with
the norm: the convolution's bias, the residual, a cast. The products round each site are kept thin
(256 columns), so that the site dominates. "always" takes every site; "auto" is what users get. Each
result is compared with float64: its error may exceed plain Inductor's by one unit in the last place
of the largest value.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from rocm_passes.backend import rocm_diffusion
from rocm_passes.bench.failing import raise_on_compile_error

THIN = 256
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def _rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """diffusers' RMSNorm: rounded before the weight."""
    variance = (
        x.to(torch.float32 if x.dtype is not torch.float64 else x.dtype)
        .pow(2)
        .mean(-1, keepdim=True)
    )
    return (x * torch.rsqrt(variance + eps)).to(x.dtype) * weight


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


class Between(nn.Module):
    """linear -> site -> linear, the residual stream beside it."""

    def __init__(self, width: int, site: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(THIN, width), nn.Linear(width, THIN)
        self.weight, self.branch_weight = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.ones(width)),
        )
        self.site = site

    def forward(self, a: Tensor, x: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        out, *rest = self.site(self, self.before(a), x, *tables)
        return (self.after(out), *rest)


def wan(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    gate, scale, shift = _wide(table).chunk(3, 1)
    x = (_wide(x) + y * gate).type_as(x)
    n = F.layer_norm(_wide(x), x.shape[-1:], eps=1e-6)
    return (n * (1 + scale) + shift).type_as(x), x


def flux(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    gate, scale, shift = table.chunk(3, 1)
    x = x + gate * y
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift, x


def modulate(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    _, scale, shift = table.chunk(3, 1)
    return (F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale) + shift,)


def affine(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return (F.layer_norm(y, y.shape[-1:], m.weight, m.branch_weight, 1e-6),)


def z_image(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    gate, scale, _ = table.chunk(3, 1)
    x = x + gate.tanh() * _rms(y, m.branch_weight)
    return _rms(x, m.weight) * (1 + scale), x


def z_image_end(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    gate = table.chunk(3, 1)[0]
    return (x + gate.tanh() * _rms(y, m.branch_weight),)


def rms_scale(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return (_rms(y, m.weight) * (1 + table.chunk(3, 1)[1]),)


def add_rms(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    x = x + y
    return _rms(x, m.weight), x


def plain_rms(m: Between, y: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return (F.rms_norm(y, y.shape[-1:], m.weight, 1e-6),)


def rows(name: str, site: Callable[..., tuple[Tensor, ...]], tokens: int, width: int) -> Case:
    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        inputs = (
            torch.randn(1, tokens, THIN),
            torch.randn(1, tokens, width),
            torch.randn(1, 3, width) * 0.3,
        )
        return Between(width, site).to("cuda", BF16), tuple(t.to("cuda", BF16) for t in inputs)

    return Case(f"{name} [{tokens}, {width}]", build)


class Convolutions(nn.Module):
    def __init__(self, channels: int, rank: int, kind: str) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 4 else nn.Conv3d
        self.before, self.after = conv(channels, channels, 1), conv(channels, channels, 1)
        self.group = nn.GroupNorm(32, channels, eps=1e-6)
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * (rank - 2)))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        if self.kind == "group":
            return self.after(F.silu(self.group(y)))
        n = F.normalize(_wide(y), dim=1).to(y.dtype) * y.shape[1] ** 0.5 * self.gamma + 0.0
        return self.after(F.silu(n))


def images(name: str, shape: tuple[int, ...], kind: str, last: bool = False) -> Case:
    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        layout = torch.contiguous_format
        if last:
            layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        model = Convolutions(shape[1], len(shape), kind).to("cuda", BF16)
        for conv in (model.before, model.after):
            conv.to(memory_format=layout)
        return model, (torch.randn(shape).to("cuda", BF16).to(memory_format=layout),)

    return Case(f"{name} {list(shape)}{' channels-last' if last else ''}", build)


def cases() -> Iterator[Case]:
    yield rows("Wan residual, LN, modulate", wan, 32760, 5120)
    yield rows("RMSNorm", plain_rms, 32760, 5120)
    yield rows("add, RMSNorm", add_rms, 32760, 5120)
    yield images("channel norm, SiLU", (1, 96, 4, 480, 832), "channel")
    yield images("channel norm, SiLU", (1, 96, 4, 480, 832), "channel", last=True)
    yield images("channel norm, SiLU", (1, 384, 1, 60, 104), "channel")
    yield images("channel norm, SiLU", (1, 384, 1, 60, 104), "channel", last=True)
    yield images("GroupNorm, SiLU", (1, 128, 1024, 1024), "group")
    yield images("GroupNorm, SiLU", (1, 128, 1024, 1024), "group", last=True)
    yield images("GroupNorm, SiLU", (1, 512, 128, 128), "group")
    yield images("GroupNorm, SiLU", (1, 512, 128, 128), "group", last=True)
    yield rows("Flux residual, LN, modulate", flux, 4608, 3072)
    yield rows("LN, modulate", modulate, 4608, 3072)
    yield rows("affine LN", affine, 32760, 5120)
    yield rows("Z-Image x + g*norm(y), norm * scale", z_image, 4608, 3840)
    yield rows("Z-Image x + g*norm(y)", z_image_end, 4608, 3840)
    yield rows("Z-Image norm * scale", rms_scale, 4608, 3840)
    yield rows("Flux residual, LN, modulate", flux, 512, 3072)
    yield rows("Wan residual, LN, modulate", wan, 32760, 1536)
    yield rows("add, RMSNorm", add_rms, 512, 4096)
    yield rows("RMSNorm", plain_rms, 4608, 3072)
    yield rows("affine LN", affine, 4608, 3072)


def measure(case: Case, selects: list[str]) -> dict[str, object]:
    torch.manual_seed(0)
    model, inputs = case.build()
    row: dict[str, object] = {"name": case.name}
    results: dict[str, list[Tensor]] = {}
    options: dict[str, dict[str, str] | None] = {"inductor": None}
    options |= {select: {"select": select, "layout": "as_is"} for select in selects}
    with torch.no_grad():
        for label, given in options.items():
            torch._dynamo.reset()
            backend = (
                "inductor" if given is None else functools.partial(rocm_diffusion, options=given)
            )
            compiled = torch.compile(model, backend=backend)
            made = compiled(*inputs)
            results[label] = list(made) if isinstance(made, tuple) else [made]
            row[label] = triton.testing.do_bench(
                lambda f=compiled: f(*inputs), warmup=20, rep=60, return_mode="median"
            )
        small = tuple(t.double() for t in inputs)
        exact = model.double()(*small)
        exact = list(exact) if isinstance(exact, tuple) else [exact]
    errors = {
        k: max((o.double() - e).abs().max().item() for o, e in zip(v, exact, strict=True))
        for k, v in results.items()
    }
    unit = max(e.abs().max().item() for e in exact) * torch.finfo(BF16).eps
    row["error"] = {k: round(v, 5) for k, v in errors.items()}
    row["right"] = all(error <= errors["inductor"] + unit for error in errors.values())
    return row


def main() -> None:
    raise_on_compile_error()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--select", default="always,auto", help="which selections to compile beside Inductor"
    )
    args = parser.parse_args()
    found = []
    selects = args.select.split(",")
    print(f"{'ms':62s}" + "".join(f"{label:>10s}" for label in ("inductor", *selects)))
    for case in cases():
        if args.only not in case.name:
            continue
        row = measure(case, selects)
        found.append(row)
        mark = "" if row["right"] else f"  WRONG {row['error']}"
        times = "".join(f"{row[label]:10.4f}" for label in ("inductor", *selects))
        print(f"{case.name:62s}{times}{mark}", flush=True)
        torch.cuda.empty_cache()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
