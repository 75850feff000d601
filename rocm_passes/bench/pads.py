"""Padding between HunyuanVideo's convolutions at production sizes (a tile of 256 px, 17 frames),
bf16.

    python -m rocm_passes.bench.pads [--json FILE] [--only TEXT]

resnet: convolution, GroupNorm, SiLU, replicate padding, convolution. upsampler: a residual sum,
every frame but the first twice and all pixels twice, replicate padding, convolution. shortcut:
padding by nothing, convolution of kernel 1.

inductor: plain Inductor. none: ours without the two idioms. pad: with padding as one copy. all:
with GroupNorm writing the padded tensor, too. Milliseconds of a whole case; then of its kernels but
the libraries' (what is left beside the convolutions), and the floor of those: bytes that must move
at the rate of a large copy. The last column is the largest difference to plain Inductor over the
largest value.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocm_passes.backend import rocm_diffusion
from rocm_passes.bench.failing import raise_on_compile_error

CAUSAL = [1, 1, 1, 1, 2, 0]
#: Idioms that each form leaves out. Convolutions go by the rules, so that no measurement differs
#: between forms.
FORMS: dict[str, str | None] = {
    "inductor": None,
    "none": "-pad,-group_norm_pad",
    "pad": "-group_norm_pad",
    "all": "all",
}


@dataclass(frozen=True)
class Case:
    """kind: "resnet", "upsampler" or "shortcut". shape: of what comes in, [N, C, T, H, W]. out:
    channels.
    """

    kind: str
    shape: tuple[int, ...]
    out: int
    factors: tuple[int, int, int] = (1, 1, 1)

    @property
    def name(self) -> str:
        return f"{self.kind} {list(self.shape)} to {self.out}"

    @property
    def padded(self) -> int:
        """Elements of the tensor that the last convolution reads."""
        n, c, t, h, w = self.shape
        if self.kind == "shortcut":
            return 0
        ft, fh, fw = self.factors
        return n * c * (t * ft - ft + 1 + 2) * (h * fh + 2) * (w * fw + 2)

    @property
    def floor_elements(self) -> int:
        """Elements read and written beside the convolutions: the statistics read once, what is made
        of them again.
        """
        size = math.prod(self.shape)
        return {"resnet": 2 * size, "upsampler": 4 * size, "shortcut": 0}[self.kind] + self.padded


def cases() -> Iterator[Case]:
    yield Case("resnet", (1, 128, 17, 256, 256), 128)
    yield Case("resnet", (1, 256, 17, 256, 256), 128)
    yield Case("resnet", (1, 256, 9, 128, 128), 256)
    yield Case("resnet", (1, 512, 5, 64, 64), 512)
    yield Case("upsampler", (1, 256, 9, 128, 128), 256, (2, 2, 2))
    yield Case("upsampler", (1, 512, 5, 64, 64), 512, (2, 2, 2))
    yield Case("upsampler", (1, 512, 5, 32, 32), 512, (1, 2, 2))
    yield Case("shortcut", (1, 256, 17, 256, 256), 128)


class Match(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        channels = case.shape[1]
        kernel = 1 if case.kind == "shortcut" else 3
        self.before = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(min(32, channels), channels, eps=1e-6)
        self.after = nn.Conv3d(channels, case.out, kernel)
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        if self.case.kind == "resnet":
            return self._after(F.silu(self.norm(y)))
        y = x + y
        return self._after(self._upsampled(y)) if self.case.kind == "upsampler" else self._after(y)

    def _after(self, y: Tensor) -> Tensor:
        padding = [0] * 6 if self.case.kind == "shortcut" else CAUSAL
        result: Tensor = self.after(F.pad(y, padding, mode="replicate"))
        return result

    def _upsampled(self, y: Tensor) -> Tensor:
        scale = tuple(float(f) for f in self.case.factors)
        first, others = y.split((1, y.size(2) - 1), dim=2)
        first = F.interpolate(first.squeeze(2), scale_factor=scale[1:], mode="nearest").unsqueeze(2)
        others = F.interpolate(others.contiguous(), scale_factor=scale, mode="nearest")
        return torch.cat((first, others), dim=2)


def compiled(model: nn.Module, form: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """The model as one of FORMS compiles it."""
    torch._dynamo.reset()
    idioms = FORMS[form]
    if idioms is None:
        return torch.compile(model, dynamic=False)  # type: ignore[no-any-return]
    options = {"tune_seconds": 0, **options} | ({} if idioms == "all" else {"idioms": idioms})
    backend = functools.partial(rocm_diffusion, options=options)
    return torch.compile(model, backend=backend, dynamic=False)  # type: ignore[no-any-return]


def measure(case: Case, copy_rate: float) -> dict[str, Any]:
    import triton

    torch.manual_seed(0)
    model = Match(case).to("cuda", torch.bfloat16)
    x = torch.randn(case.shape, device="cuda", dtype=torch.bfloat16)
    row: dict[str, Any] = {
        "name": case.name,
        "floor": round(2 * case.floor_elements / copy_rate / 1e6, 3),
    }
    expected = None
    with torch.no_grad():
        for form in FORMS:
            f = compiled(model, form)
            result = f(x).float()
            expected = result if expected is None else expected
            difference = ((result - expected).abs().max() / expected.abs().max()).item()
            ms = triton.testing.do_bench(lambda f=f: f(x), warmup=50, rep=150, return_mode="median")
            beside = beside_the_libraries(lambda f=f: f(x))
            row[form] = {
                "ms": ms,
                "beside": sum(beside.values()),
                "kernels": beside,
                "difference": difference,
            }
            del result
    return row


def beside_the_libraries(work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of one call by kernel, of those that Triton compiled."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    ours = ("triton_", "pad_kernel", "group_norm")
    return {
        e.key: round(e.self_device_time_total / 1000, 4)
        for e in profile.key_averages()
        if e.key.startswith(ours)
    }


def gigabytes_a_second() -> float:
    """Read and written together, of a large copy."""
    import triton

    x = torch.empty(2**28, dtype=torch.float32, device="cuda")
    y = torch.empty_like(x)
    ms = triton.testing.do_bench(lambda: y.copy_(x), return_mode="median")
    return float(2 * x.nbytes / ms / 1e6)


def main() -> None:
    raise_on_compile_error()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    rate = gigabytes_a_second()
    print(f"a large copy moves {rate:.0f} GB/s")
    print(
        f"{'ms, beside the libraries':42s}" + "".join(f"{form:>18s}" for form in FORMS) + "   floor"
    )
    rows = []
    for case in cases():
        if args.only not in case.name:
            continue
        row = measure(case, rate)
        rows.append(row)
        times = "".join(f"{row[form]['ms']:10.3f}{row[form]['beside']:8.3f}" for form in FORMS)
        worst = max(row[form]["difference"] for form in FORMS)
        print(f"{case.name:42s}{times}{row['floor']:8.3f}  {worst:.1e}", flush=True)
        torch.cuda.empty_cache()
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
