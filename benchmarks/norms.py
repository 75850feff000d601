"""Norms on one GPU: ours against plain Inductor and against the memory floor, in one run.

    python -m benchmarks.norms [--json FILE] [--eager] [--only TEXT]

The floor is the bytes that must move (each input read once, each output written once) at the copy rate
measured in the same run. Times are medians of replayed CUDA graphs; inputs and outputs rotate among enough
buffers that the L2 cache holds none of them. Every result is compared with float64 before it is timed: its
error may exceed that of the eager original by one unit in the last place.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels.triton.channel_norm import channel_norm
from rocm_passes.kernels.triton.group_norm import group_norm
from rocm_passes.kernels.triton.norm import add_rms_norm, fused_norm, rms_norm

Result = tuple[Tensor, ...]
BF16, FP32 = torch.bfloat16, torch.float32
CACHE_BYTES = 256 * 2**20
REPLAYS = 15


@dataclass(frozen=True)
class Case:
    """One idiom at one shape. `original` is the model's spelling, and the reference when its inputs are
    float64.
    """

    name: str
    inputs: Callable[[], Result]
    original: Callable[..., Result]
    ours: Callable[..., Result]


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
        return (rms_norm(x, w, 1e-6),)

    full = [(32760, 5120), (32760, 1536), (27280, 3072), (4608, 3840), (4608, 6144), (14784, 2048)]
    heads = [(1, 4608, 30, 128), (1, 6889, 24, 128), (1, 118800, 24, 128), (2, 7392, 32, 64)]
    for shape in [*full, *heads]:
        yield Case(
            f"RMSNorm {list(shape)}",
            lambda shape=shape: (normal(*shape), normal(shape[-1])),
            torch_rms,
            our_rms,
        )
    yield Case(
        "RMSNorm [32760, 5120], diffusers' spelling",
        lambda: (normal(32760, 5120), normal(5120)),
        lambda x, w: (diffusers_rms(x, w, 1e-6),),
        lambda x, w: (rms_norm(x, w, 1e-6, round_before_weight=True),),
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

    yield Case(
        "add + RMSNorm [32760, 5120]",
        lambda: (normal(32760, 5120), normal(32760, 5120), normal(5120)),
        add_then_norm,
        lambda x, r, w: add_rms_norm(x, r, w, 1e-6, round_sum=True),
    )


def chain_cases() -> Iterator[Case]:
    def wan(x: Tensor, y: Tensor, g: Tensor, scale: Tensor, shift: Tensor) -> Result:
        s = (wide(x) + y * g).to(x.dtype)
        n = F.layer_norm(wide(s), (s.shape[-1],), None, None, 1e-6)
        return (n * (1 + scale) + shift).to(x.dtype), s

    def our_wan(x: Tensor, y: Tensor, g: Tensor, scale: Tensor, shift: Tensor) -> Result:
        (out,), s = fused_norm(
            x, kind="layer", eps=1e-6, branch=y, gate=g, modulations=[(scale, shift)],
            sum_dtype=x.dtype, round_sum=True,
        )  # fmt: skip
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

    def z_image(x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, scale: Tensor) -> Result:
        s = x + g * diffusers_rms(a, wa, 1e-5)
        return diffusers_rms(s, w, 1e-5) * scale, s

    def our_z_image(x: Tensor, a: Tensor, g: Tensor, wa: Tensor, w: Tensor, scale: Tensor) -> Result:
        (out,), s = fused_norm(
            x, kind="rms", eps=1e-5, branch=a, gate=g, branch_weight=wa, branch_eps=1e-5, weight=w,
            modulations=[(scale, None)], scale_offset=0.0, sum_dtype=x.dtype, round_sum=True,
        )  # fmt: skip
        assert s is not None
        return out, s

    yield Case(
        "x + g * RMSNorm(a); RMSNorm * scale [1, 4608, 3840]",
        lambda: (
            normal(1, 4608, 3840), normal(1, 4608, 3840), normal(1, 1, 3840), normal(3840), normal(3840),
            normal(1, 1, 3840),
        ),
        z_image,
        our_z_image,
    )  # fmt: skip

    def flux(x: Tensor, scale: Tensor, shift: Tensor) -> Result:
        n = F.layer_norm(x, (x.shape[-1],), None, None, 1e-6)
        return (n * (1 + scale) + shift,)

    yield Case(
        "LayerNorm + modulate [1, 4608, 3072]",
        lambda: (normal(1, 4608, 3072), normal(1, 1, 3072), normal(1, 1, 3072)),
        flux,
        lambda x, scale, shift: tuple(fused_norm(x, kind="layer", eps=1e-6, modulations=[(scale, shift)])[0]),
    )


def channel_cases() -> Iterator[Case]:
    def original(x: Tensor, gamma: Tensor) -> Result:
        n = F.normalize(wide(x), dim=1).to(x.dtype)
        return (F.silu(n * x.shape[1] ** 0.5 * gamma + 0.0),)

    def ours(x: Tensor, gamma: Tensor) -> Result:
        return (channel_norm(x, gamma, scale=x.shape[1] ** 0.5, silu=True, round_before_weight=True),)

    for shape in [(1, 96, 4, 480, 832), (1, 96, 4, 720, 1280), (1, 192, 4, 240, 416), (1, 384, 2, 120, 208)]:
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
        # In float64 too the batch is kept contiguous: eager's channels-last reduction is the less exact one.
        return (F.silu(F.group_norm(x, 32, w, b, 1e-6)),)

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Result:
        return (group_norm(x, 32, w, b, 1e-6, silu=True),)

    for shape in [(1, 128, 1024, 1024), (1, 512, 128, 128)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            yield Case(
                f"GroupNorm(32) + SiLU {list(shape[1:])} {_name(layout)}",
                lambda s=shape, m=layout: (normal(*s).to(memory_format=m), normal(s[1]), normal(s[1])),
                original,
                ours,
            )


def _name(layout: torch.memory_format) -> str:
    return "contiguous" if layout is torch.contiguous_format else "channels-last"


def bytes_moved(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_rate() -> float:
    """Bytes a millisecond, reads and writes together, of a 1 GiB device copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_ms(lambda: target.copy_(source))


def median_ms(launch: Callable[[], object]) -> float:
    for _ in range(3):
        launch()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def time_calls(call: Callable[..., Result], sets: Sequence[Result]) -> float:
    """Milliseconds a call: all input sets in one captured graph, every output kept, so that buffers
    rotate.
    """
    rounds = -(-8 // len(sets))
    for inputs in sets[:2]:
        call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept: list[Result] = []
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            kept = [call(*inputs) for inputs in sets]
    milliseconds = median_ms(graph.replay) / (rounds * len(sets))
    del kept
    return milliseconds


def check(case: Case, inputs: Result, got: Result) -> float:
    """Largest error against float64 over the eager original's own largest; raises where the bar is missed."""
    exact = case.original(*(t.double() for t in inputs))
    eager = case.original(*inputs)
    worst = 0.0
    for ours, theirs, reference in zip(got, eager, exact, strict=True):
        if ours.stride() != theirs.stride():
            print(f"  note: {case.name}: strides {ours.stride()}, eager's {theirs.stride()}")
        ulp = torch.finfo(ours.dtype).eps * reference.abs().clamp_min(torch.finfo(ours.dtype).tiny)
        error, allowed = (ours.double() - reference).abs(), (theirs.double() - reference).abs().max()
        if not bool((error <= allowed + ulp).all()):
            raise AssertionError(f"{case.name}: error {error.max().item():.3g}, eager's {allowed.item():.3g}")
        worst = max(worst, (error.max() / allowed.clamp_min(1e-30)).item())
    return worst


def measure(case: Case, rate: float, eager: bool) -> dict[str, object]:
    inputs = case.inputs()
    got = case.ours(*inputs)
    relative_error = check(case, inputs, got)
    moved = bytes_moved([*inputs, *got])
    del got
    sets = [inputs] + [case.inputs() for _ in range(CACHE_BYTES // moved)]
    torch._dynamo.reset()
    compiled = torch.compile(case.original, dynamic=False)
    floor = moved / rate
    row: dict[str, object] = {"case": case.name, "floor_ms": floor, "error_vs_eager": relative_error}
    row["ours_ms"] = time_calls(case.ours, sets)
    row["inductor_ms"] = time_calls(compiled, sets)
    row["eager_ms"] = time_calls(case.original, sets) if eager else None
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--eager", action="store_true", help="time the eager original too")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args(argv)

    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e9:.2f} TB/s")
    print(f"{'case':82} {'floor':>8} {'ours':>8} {'Inductor':>8} {'x/floor':>8} {'Inductor':>8} {'error':>6}")
    rows = []
    for case in (*row_cases(), *chain_cases(), *channel_cases(), *group_cases()):
        if options.only not in case.name:
            continue
        try:
            row = measure(case, rate, options.eager)
        except (AssertionError, RuntimeError) as failure:
            # One failed case must not hide the others' numbers; it is in the table and in the exit status.
            row = {"case": case.name, "failed": str(failure)[:500]}
            print(f"{case.name:82} FAILED {row['failed']}")
        else:
            floor, ours, theirs = (float(row[k]) for k in ("floor_ms", "ours_ms", "inductor_ms"))  # type: ignore[arg-type]
            print(
                f"{case.name:82} {floor:8.4f} {ours:8.4f} {theirs:8.4f} {ours / floor:8.2f} "
                f"{theirs / floor:8.2f} {row['error_vs_eager']:6.2f}",
                flush=True,
            )
        rows.append(row)
        torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps({"copy_bytes_per_ms": rate, "rows": rows}, indent=1))
    if any("failed" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
