"""Rotary embedding, alone and after the q/k norm, at production shapes: ours, Inductor and the memory floor.

    python -m benchmarks.rotary [--only NAME] [--json FILE] [--no-inductor]

Every row is first checked against the same formulas in float64. The floor is the time to move every input
once and every output once at the rate of a large copy measured in the same run. Calls are captured in a CUDA
graph; where the tensors would fit in the last-level cache, the calls rotate over several sets of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels.triton.qk_norm_rotary import qk_norm_rotary
from rocm_passes.kernels.triton.rotary import rotary_pair

CACHE_BYTES = 512 << 20  # a working set that no last-level cache of today holds
WARM_SECONDS = 0.2  # until then clocks are still rising, and a row would read a tenth too slow
Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One idiom at one shape; `original` is the model's spelling, computing in `wide` where it upcasts."""

    name: str
    make: Callable[[], Inputs]
    original: Callable[..., Outputs]
    ours: Callable[..., Outputs]


@dataclass(frozen=True)
class Row:
    name: str
    floor_us: float
    ours_us: float
    inductor_us: float | None
    rms_error_ours: float
    rms_error_eager: float

    @property
    def ratio(self) -> float:
        return self.ours_us / self.floor_us


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
        return rotary_pair(q, k, cos[..., 0::2], sin[..., 1::2], interleaved=True)

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
        return qk_norm_rotary(
            q.unflatten(2, (40, -1)), k.unflatten(2, (40, -1)), cos[..., 0::2], sin[..., 1::2],
            interleaved=True, eps_q=1e-6, across_heads=True, q_weight=wq, k_weight=wk,
        )  # fmt: skip

    return Case(f"Wan norm + RoPE q,k [1,{tokens},40,128]", make, original, ours)


def complex_rope() -> Case:
    def make() -> Inputs:
        return heads(4608, 30), heads(4608, 30), unit(4608)

    def original(q: Tensor, k: Tensor, freqs: Tensor, wide: torch.dtype = torch.float32) -> Outputs:
        return rope_complex(q, freqs, wide), rope_complex(k, freqs, wide)

    def ours(q: Tensor, k: Tensor, freqs: Tensor) -> Outputs:
        return rotary_pair(q, k, *parts(freqs), interleaved=True)

    return Case("complex RoPE q,k [1,4608,30,128]", make, original, ours)


def norm_complex_rope(name: str, tokens: int, count: int, eps: float) -> Case:
    def make() -> Inputs:
        return heads(tokens, count), heads(tokens, count), unit(tokens), weight(128), weight(128)

    def original(
        q: Tensor, k: Tensor, freqs: Tensor, wq: Tensor, wk: Tensor, wide: torch.dtype = torch.float32
    ) -> Outputs:
        return (
            rope_complex(rms_diffusers(q, wq, eps, wide), freqs, wide),
            rope_complex(rms_diffusers(k, wk, eps, wide), freqs, wide),
        )

    def ours(q: Tensor, k: Tensor, freqs: Tensor, wq: Tensor, wk: Tensor) -> Outputs:
        return qk_norm_rotary(
            q,
            k,
            *parts(freqs),
            interleaved=True,
            eps_q=eps,
            q_weight=wq,
            k_weight=wk,
            round_before_weight=True,
        )

    return Case(f"{name} norm + complex RoPE q,k [1,{tokens},{count},128]", make, original, ours)


def qwen_joint() -> Case:
    def make() -> Inputs:
        image, text = 6889, 512
        return (
            heads(text, 24), heads(text, 24), heads(image, 24), heads(image, 24), unit(text), unit(image),
            *(weight(128) for _ in range(4)),
        )  # fmt: skip

    def original(
        tq: Tensor, tk: Tensor, q: Tensor, k: Tensor, tf: Tensor, f: Tensor,
        wtq: Tensor, wtk: Tensor, wq: Tensor, wk: Tensor, wide: torch.dtype = torch.float32,
    ) -> Outputs:  # fmt: skip
        tq, tk = (rope_complex(rms_diffusers(x, w, 1e-6, wide), tf, wide) for x, w in ((tq, wtq), (tk, wtk)))
        q, k = (rope_complex(rms_diffusers(x, w, 1e-6, wide), f, wide) for x, w in ((q, wq), (k, wk)))
        return torch.cat([tq, q], dim=1), torch.cat([tk, k], dim=1)

    def ours(
        tq: Tensor, tk: Tensor, q: Tensor, k: Tensor, tf: Tensor, f: Tensor,
        wtq: Tensor, wtk: Tensor, wq: Tensor, wk: Tensor,
    ) -> Outputs:  # fmt: skip
        text = tq.shape[1]
        joint = q.new_empty(2, 1, text + q.shape[1], *q.shape[2:]).unbind(0)
        for a, b, freqs, wa, wb, rows in (
            (tq, tk, tf, wtq, wtk, slice(0, text)), (q, k, f, wq, wk, slice(text, None)),
        ):  # fmt: skip
            qk_norm_rotary(
                a, b, *parts(freqs), interleaved=True, eps_q=1e-6, q_weight=wa, k_weight=wb,
                round_before_weight=True, out_q=joint[0][:, rows], out_k=joint[1][:, rows],
            )  # fmt: skip
        return joint

    return Case("Qwen-Image norm + RoPE, text and image, + cat [1,512+6889,24,128]", make, original, ours)


def flux_rope() -> Case:
    def make() -> Inputs:
        return heads(4608, 24), heads(4608, 24), *doubled(4608)

    def original(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype = torch.float32
    ) -> Outputs:
        return rope_stack(q, cos, sin, wide), rope_stack(k, cos, sin, wide)

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
        return rotary_pair(q, k, cos[None, :, None], sin[None, :, None], interleaved=True)

    return Case("Flux stack RoPE q,k [1,4608,24,128]", make, original, ours)


def flux_joint() -> Case:
    """The double block: norm -> cat(text, image) -> RoPE."""
    text = 512

    def make() -> Inputs:
        return (
            heads(text, 24), heads(text, 24), heads(4096, 24), heads(4096, 24), *doubled(4096 + text),
            *(weight(128) for _ in range(4)),
        )  # fmt: skip

    def original(
        tq: Tensor, tk: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor,
        wtq: Tensor, wtk: Tensor, wq: Tensor, wk: Tensor, wide: torch.dtype = torch.float32,
    ) -> Outputs:  # fmt: skip
        q = torch.cat([rms_torch(tq, wtq, 1e-6, wide), rms_torch(q, wq, 1e-6, wide)], dim=1)
        k = torch.cat([rms_torch(tk, wtk, 1e-6, wide), rms_torch(k, wk, 1e-6, wide)], dim=1)
        return rope_stack(q, cos, sin, wide), rope_stack(k, cos, sin, wide)

    def ours(
        tq: Tensor, tk: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor,
        wtq: Tensor, wtk: Tensor, wq: Tensor, wk: Tensor,
    ) -> Outputs:  # fmt: skip
        joint = q.new_empty(2, 1, text + q.shape[1], *q.shape[2:]).unbind(0)
        cos, sin = cos[None, :, None], sin[None, :, None]
        for a, b, wa, wb, rows in ((tq, tk, wtq, wtk, slice(0, text)), (q, k, wq, wk, slice(text, None))):
            qk_norm_rotary(
                a, b, cos[:, rows], sin[:, rows], interleaved=True, eps_q=1e-6, q_weight=wa, k_weight=wb,
                out_q=joint[0][:, rows], out_k=joint[1][:, rows],
            )  # fmt: skip
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
        return qk_norm_rotary(
            q, k, cos[None, :, None], sin[None, :, None], interleaved=True,
            eps_q=1e-6, q_weight=wq, k_weight=wk, round_before_weight=not fused_qkv,
        )  # fmt: skip

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
        return rotary_pair(q, k, cos, sin, interleaved=False)

    return Case("half-split RoPE q,k, bf16 tables [1,4608,30,128]", make, original, ours)


def cases() -> list[Case]:
    return [
        wan_norm_rope(32760), wan_rope(32760), norm_complex_rope("Z-Image", 4608, 30, 1e-5), complex_rope(),
        half_split(), flux_rope(), flux_joint(), wan_norm_rope(75600), wan_rope(75600),
        norm_complex_rope("Qwen-Image", 6889, 24, 1e-6), qwen_joint(),
        norm_stack_rope("FLUX.2 fused qkv", 4608, 48, True),
        norm_stack_rope("HunyuanVideo", 118800, 24, False),
    ]  # fmt: skip


# Measuring.


def nbytes(tensors: Inputs) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_rate() -> float:
    """Bytes per microsecond of a large device copy, counting what is read and what is written."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(5):
            target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / 5)
    return 2 * nbytes((source,)) / statistics.median(times[10:])


def time_us(call: Callable[..., object], sets: list[Inputs], repeats: int = 15) -> float:
    """Median time of one call in microseconds, from replays of a graph of a call on every set."""
    rounds = max(1, 4 // len(sets))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(*sets[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for inputs in sets:
                call(*inputs)
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_SECONDS:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / (rounds * len(sets)))
    graph.reset()
    return statistics.median(times)


def check(case: Case, inputs: Inputs) -> tuple[float, float]:
    """RMS error of ours and of eager against float64; raises where ours is worse by over one last place."""
    widened = tuple(t.to(torch.complex128) if t.is_complex() else t.double() for t in inputs)
    exact = case.original(*widened, wide=torch.float64)
    errors: list[tuple[float, float]] = []
    for ours, eager, truth in zip(case.ours(*inputs), case.original(*inputs), exact, strict=True):
        error, original_error = (ours.double() - truth).abs(), (eager.double() - truth).abs()
        # Of the largest channel of the head: the rotation carries that one's rounding into another.
        last_place = torch.finfo(ours.dtype).eps * truth.abs().amax(-1, keepdim=True)
        excess = ((error - original_error) / last_place).max().item()
        errors.append((error.square().mean().sqrt().item(), original_error.square().mean().sqrt().item()))
        if not excess <= 1.0 or not errors[-1][0] <= 1.001 * errors[-1][1]:
            raise AssertionError(f"{case.name}: {excess:.2f} last places beyond eager; rms {errors[-1]}")
    return max(e[0] for e in errors), max(e[1] for e in errors)


def measure(case: Case, rate: float, inductor: bool) -> Row:
    torch.manual_seed(0)
    inputs = case.make()
    ours_error, eager_error = check(case, inputs)
    torch.cuda.empty_cache()  # the float64 check leaves blocks behind that the timed calls should not sit in
    moved = nbytes(inputs) + nbytes(case.ours(*inputs))
    sets = [inputs] + [case.make() for _ in range(min(8, CACHE_BYTES // moved))]
    ours_us = time_us(case.ours, sets)
    inductor_us = None
    if inductor:
        torch._dynamo.reset()
        inductor_us = time_us(torch.compile(case.original, dynamic=False), sets)
    torch.cuda.empty_cache()
    return Row(case.name, moved / rate, ours_us, inductor_us, ours_error, eager_error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--no-inductor", action="store_true", help="do not time plain Inductor")
    args = parser.parse_args()
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e6:.2f} TB/s")
    print(f"{'row':72s} {'floor us':>9s} {'ours':>9s} {'x':>6s} {'inductor':>9s} {'x':>6s}")
    rows = []
    for case in cases():
        if args.only not in case.name:
            continue
        row = measure(case, rate, not args.no_inductor)
        rows.append(row)
        other = (
            "" if row.inductor_us is None else f"{row.inductor_us:9.1f} {row.inductor_us / row.floor_us:6.2f}"
        )
        print(f"{row.name:72s} {row.floor_us:9.1f} {row.ours_us:9.1f} {row.ratio:6.2f} {other}", flush=True)
    if args.json:
        report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_tb_s": rate / 1e6}
        args.json.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
