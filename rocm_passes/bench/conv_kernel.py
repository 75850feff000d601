"""The Triton convolution beside cuDNN's (MIOpen's), at the sizes of video and image decoders, bf16.

    python -m rocm_passes.bench.conv_kernel             the table's tile for each shape
    python -m rocm_passes.bench.conv_kernel --sweep     every candidate tile; the best is shown
    python -m rocm_passes.bench.conv_kernel --sweep --only 96-96 --json results.json

"384-384 3x3x3 2+1f 90x160": channels in and out, the kernel, cached frames before the new ones, and
the input's height and width. "up": pixels are repeated twice along height and width. "x4": images.

library: conv3d (conv2d) on one channels-last tensor, frames joined and pixels repeated before.
joined: the same with that copy. taps: the sum of one conv2d for each temporal tap. Medians in
milliseconds. TF/s and share (of the rate of a large matrix product): those of the Triton kernel.
error: rms over the rms of float32's result, then the library's.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = (
    # Wan 2.1 at 832x480 and at 1280x720.
    "384-384 3x3x3 2+1f 60x104",
    "192-384 3x3x3 2+2f 120x208",
    "384-384 3x3x3 2+2f 120x208",
    "192-192 3x3x3 2+4f 240x416",
    "96-96 3x3x3 2+4f 480x832",
    "96-3 3x3x3 2+4f 480x832",
    "384-384 3x3x3 2+1f 90x160",
    "384-384 3x3x3 2+2f 180x320",
    "192-192 3x3x3 2+4f 360x640",
    "96-96 3x3x3 2+4f 720x1280",
    "96-3 3x3x3 2+4f 720x1280",
    "384-768 3x1x1 2+2f 120x208",
    "192-384 1x1x1 2f 120x208",
    "384-192 3x3 x4 120x208 up",
    "192-96 3x3 x4 240x416 up",
    # SDXL and FLUX at 1024x1024.
    "512-512 3x3 x1 128x128",
    "512-512 3x3 x1 256x256",
    "512-512 3x3 x1 256x256 up",
    "512-256 3x3 x1 512x512",
    "256-256 3x3 x1 512x512",
    "256-256 3x3 x1 512x512 up",
    "256-128 3x3 x1 1024x1024",
    "128-128 3x3 x1 1024x1024",
    # Qwen-Image at 1328x1328: one temporal tap of three.
    "384-384 3x3 x1 166x166",
    "192-192 3x3 x1 664x664",
    "96-96 3x3 x1 1328x1328",
    # CogVideoX and HunyuanVideo.
    "128-128 3x3x3 2+8f 480x720",
    "256-256 3x3x3 2+9f 128x128",
)
_SHAPE = re.compile(
    r"(?P<c>\d+)-(?P<o>\d+) (?P<k>[\dx]+) (?:x(?P<n>\d+)|(?:(?P<front>\d+)\+)?(?P<t>\d+)f) "
    r"(?P<h>\d+)x(?P<w>\d+)"
    r"(?P<up> up)?"
)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """One call. The kernel is (kT, kH, kW); images are samples of one frame."""

    name: str
    samples: int
    channels: int
    out: int
    kernel: tuple[int, int, int]
    front: int
    frames: int
    height: int
    width: int
    repeat: int

    @staticmethod
    def parse(name: str) -> Shape:
        found = _SHAPE.fullmatch(name)
        if found is None:
            raise SystemExit(f"not a shape: {name!r}")
        sizes = [int(k) for k in found["k"].split("x")]
        kernel = (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (1, sizes[0], sizes[1])
        return Shape(
            name, int(found["n"] or 1), int(found["c"]), int(found["o"]), kernel,
            int(found["front"] or 0), int(found["t"] or 1), int(found["h"]), int(found["w"]),
            2 if found["up"] else 1,
        )  # fmt: skip

    @property
    def out_frames(self) -> int:
        return self.frames + self.front - self.kernel[0] + 1

    @property
    def pixels(self) -> int:
        return self.samples * self.out_frames * self.height * self.width * self.repeat**2

    @property
    def flops(self) -> float:
        kt, kh, kw = self.kernel
        return 2.0 * self.pixels * self.out * self.channels * kt * kh * kw

    @property
    def space(self) -> tuple[int, int]:
        return self.kernel[1] // 2, self.kernel[2] // 2


class Inputs:
    """Two sets of tensors, used in turn."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape = shape
        last = torch.channels_last_3d
        size = (shape.samples, shape.channels, shape.frames, shape.height, shape.width)
        before = (*size[:2], shape.front, *size[3:])

        def video(of: tuple[int, ...]) -> Tensor:
            return torch.randn(of, device=device, dtype=DTYPE).to(memory_format=last)

        self.x = [video(size) for _ in range(2)]
        self.front = [video(before) if shape.front else None for _ in range(2)]
        weight = torch.randn(shape.out, shape.channels, *shape.kernel, device=device)
        self.weight = (weight / weight[0].numel() ** 0.5).to(DTYPE).to(memory_format=last)
        self.bias = torch.randn(shape.out, device=device, dtype=DTYPE)
        self._turn = 0

    def turn(self) -> int:
        self._turn = 1 - self._turn
        return self._turn

    @functools.cached_property
    def whole(self) -> list[Tensor]:
        return [self.joined(i) for i in range(2)]

    def joined(self, i: int) -> Tensor:
        x, front, r = self.x[i], self.front[i], self.shape.repeat
        if front is not None:
            x = torch.cat([front, x], 2)
        if r > 1:
            n, c, t, h, w = x.shape
            x = F.interpolate(x.squeeze(2), scale_factor=float(r), mode="nearest").unsqueeze(2)
            x = x.view(n, c, t, h * r, w * r)
        return x.to(memory_format=torch.channels_last_3d)


def library(inputs: Inputs, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = inputs.shape
    if shape.kernel[0] == 1 and shape.frames == 1:
        y = F.conv2d(x.squeeze(2), weight.squeeze(2), bias, padding=shape.space)
        return y.unsqueeze(2)
    return F.conv3d(x, weight, bias, padding=(0, *shape.space))


def taps(inputs: Inputs, x: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """As the lowering of that name: 16 bits for each tap; here added in 16 bits as well."""
    shape, total = inputs.shape, None
    frames = x[0].transpose(0, 1)
    for k, kernel in enumerate(kernels):
        y = F.conv2d(frames[k : k + shape.out_frames], kernel, None, padding=shape.space)
        total = y if total is None else total.add_(y)
    assert total is not None
    return total


def candidates(shape: Shape) -> list[Any]:
    """Tiles worth a try: rows, columns, depth, warps, stages, more columns."""
    from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import Tile

    found: Sequence[tuple[int, ...]]
    if shape.out <= 16:
        found = ((128, 16, 64, 4, 4), (128, 16, 32, 4, 4), (256, 16, 64, 4, 3), (64, 16, 64, 4, 4))
    elif shape.out == 96:
        found = (
            (128, 64, 32, 4, 4, 32), (128, 64, 32, 4, 3, 32), (128, 64, 32, 4, 5, 32),
            (256, 64, 32, 8, 4, 32), (128, 128, 32, 4, 4), (128, 128, 32, 4, 3),
            (64, 64, 32, 4, 4, 32), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3),
        )  # fmt: skip
    elif shape.out == 192:
        found = (
            (128, 128, 64, 8, 3, 64), (128, 128, 64, 8, 4, 64), (64, 128, 64, 4, 3, 64),
            (128, 64, 64, 4, 3, 32), (128, 64, 32, 4, 4, 32), (128, 64, 64, 4, 2, 32),
            (256, 64, 64, 8, 3, 32), (64, 128, 64, 4, 2, 64), (128, 128, 64, 4, 3),
        )  # fmt: skip
    else:
        found = (
            (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 4, 2), (128, 128, 32, 4, 4),
            (256, 128, 64, 8, 3), (256, 128, 64, 8, 4), (128, 256, 64, 8, 3), (64, 256, 64, 4, 3),
        )  # fmt: skip
        if shape.out % 192 == 0:
            found = (
                *found,
                (128, 128, 64, 8, 3, 64),
                (64, 128, 64, 4, 3, 64),
                (128, 64, 64, 4, 3, 32),
            )
    return [Tile(*f) for f in found]


def ours(inputs: Inputs, tile: Any, i: int) -> Tensor:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv
    from rocm_passes.kernels.triton.convolution.implicit_gemm.conv import conv3d

    shape = inputs.shape
    h, w = shape.space
    conv = Conv(padding=((0, 0), (h, h), (w, w)), upsample=(1, shape.repeat, shape.repeat))
    return conv3d(
        inputs.x[i], inputs.weight, inputs.bias, conv=conv, front=inputs.front[i], tile=tile
    )


#: Below so many TFLOP a call is timed in a CUDA graph: launched from Python, it waits for the host.
SMALL_TFLOP = 0.35


def median(run: Callable[[], Any], rep: int, shape: Shape | None = None) -> float:
    from triton.testing import do_bench, do_bench_cudagraph

    if shape is not None and shape.flops < SMALL_TFLOP * 1e12:
        return float(do_bench_cudagraph(run, rep=rep // 2, return_mode="median"))
    return float(do_bench(run, warmup=10, rep=rep, return_mode="median"))


def tried(what: str, run: Callable[[], Any]) -> Any:
    """The result, or None with the error on stderr: one failure does not end the run."""
    try:
        return run()
    except Exception as error:
        words = " ".join(str(error).split())[:150]
        print(f"  {what}: {type(error).__name__}: {words}", file=sys.stderr)
        return None


def tiles_of(shape: Shape, sweep: bool) -> list[Any]:
    from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import choose_tile
    from rocm_passes.target import Target

    arch = Target.current().arch
    chosen = choose_tile(arch, DTYPE.itemsize, shape.pixels, shape.channels, shape.out)
    return [chosen, *(t for t in candidates(shape) if t != chosen)] if sweep else [chosen]


def error_of(y: Tensor, exact: Tensor) -> float:
    return float(((y.float() - exact).square().mean() / exact.square().mean()).sqrt())


def exact_result(inputs: Inputs) -> Tensor:
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return library(inputs, inputs.whole[0].float(), inputs.weight.float(), inputs.bias.float())
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def measure(shape: Shape, sweep: bool, rep: int) -> dict[str, Any]:
    inputs = Inputs(shape, "cuda")
    whole, weight, bias = inputs.whole, inputs.weight, inputs.bias
    row: dict[str, Any] = {"shape": shape.name, "tflop": shape.flops / 1e12}

    def lib() -> Tensor:
        return library(inputs, whole[inputs.turn()], weight, bias)

    row["library"] = tried("library", lambda: median(lib, rep, shape))
    if shape.front or shape.repeat > 1:
        joined = tried(
            "joined",
            lambda: median(
                lambda: library(inputs, inputs.joined(inputs.turn()), weight, bias), rep
            ),
        )
        row["joined"] = joined
    if shape.kernel[0] > 1:
        kernels = [
            weight[:, :, k].contiguous(memory_format=torch.channels_last)
            for k in range(shape.kernel[0])
        ]
        row["taps"] = tried(
            "taps", lambda: median(lambda: taps(inputs, whole[inputs.turn()], kernels), rep)
        )
    exact = tried("float32", lambda: exact_result(inputs))
    if exact is not None:
        row["library_error"] = tried(
            "error", lambda: error_of(library(inputs, whole[0], weight, bias), exact)
        )
    tiles = []
    for tile in tiles_of(shape, sweep):
        found = tried(tile.label, lambda tile=tile: one_tile(inputs, tile, exact, rep))  # type: ignore[misc]
        if found is not None:
            tiles.append({"tile": dataclasses.asdict(tile), "name": tile.label, **found})
    row["tiles"] = sorted(tiles, key=lambda t: t["ms"])
    return row


def one_tile(inputs: Inputs, tile: Any, exact: Tensor | None, rep: int) -> dict[str, Any]:
    y = ours(inputs, tile, 0)
    error = None if exact is None else error_of(y, exact)
    del y
    return {
        "ms": median(lambda: ours(inputs, tile, inputs.turn()), rep, inputs.shape),
        "error": error,
    }


def line(row: dict[str, Any], rate: float, sweep: bool) -> Iterator[str]:
    def ms(name: str) -> str:
        return f"{row[name]:8.3f}" if row.get(name) is not None else f"{'-':>8}"

    head = f"{row['shape']:28s} {row['tflop']:6.3f} {ms('library')} {ms('joined')} {ms('taps')}"
    if not row["tiles"]:
        yield f"{head}  no tile ran"
        return
    best = row["tiles"][0]
    speed = row["tflop"] / best["ms"] * 1e3
    errors = " ".join(
        "-" if e is None else f"{e:.2e}" for e in (best["error"], row.get("library_error"))
    )
    bad = best["error"] is not None and best["error"] > 1.5 * (row.get("library_error") or 1.0)
    yield (
        f"{head} {best['ms']:8.3f} {speed:6.0f} {speed / rate:5.0%}  {best['name']:24s} {errors}"
        f"{'  WRONG' if bad else ''}"
    )
    if sweep:
        others = (f"{t['name']} {t['ms']:.3f}" for t in row["tiles"][1:])
        yield f"    {'; '.join(others)}"


HEAD = (
    f"{'shape':28s} {'TFLOP':>6s} {'library':>8s} {'joined':>8s} {'taps':>8s} {'ours':>8s} "
    f"{'TF/s':>6s} {'share':>5s}  {'tile':24s} error (ours, library)"
)


def matmul_rate() -> float:
    """TFLOP/s of a product of 8192 by 8192 matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=DTYPE) for _ in range(2))
    return 2 * 8192**3 / median(lambda: a @ b, 100) / 1e9


def compile_share(shapes: Sequence[Shape], sweep: bool, share: int, of: int) -> None:
    """Launch every `of`-th kernel once, so that Triton's cache on disk has it."""
    seen: set[Any] = set()
    count = 0
    for shape in sorted(shapes, key=lambda s: s.pixels):
        inputs: Inputs | None = None
        for tile in tiles_of(shape, sweep):
            key = (shape.channels, shape.out, shape.kernel, shape.front > 0, shape.repeat, tile)
            if key in seen:
                continue
            seen.add(key)
            count += 1
            if count % of != share:
                continue
            inputs = inputs or Inputs(shape, "cuda")
            tried(tile.label, lambda i=inputs, t=tile: ours(i, t, 0))  # type: ignore[misc]
    torch.cuda.synchronize()


def compile_ahead(arguments: Sequence[str], workers: int) -> None:
    """In several processes: in one, the kernels of a sweep would compile for ten minutes."""
    command = [sys.executable, "-m", "rocm_passes.bench.conv_kernel", *arguments]
    running = [
        subprocess.Popen([*command, "--compile", f"{i}/{workers}"], stderr=subprocess.DEVNULL)
        for i in range(workers)
    ]
    for process in running:
        try:
            process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m rocm_passes.bench.conv_kernel", description=about
    )
    parser.add_argument("--sweep", action="store_true", help="measure every candidate tile")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only shapes with this text in their names"
    )
    parser.add_argument(
        "--shape", action="append", metavar="SHAPE", help="this shape instead of the list"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--rep", type=int, default=40, metavar="MS", help="time to measure each for (40)"
    )
    parser.add_argument(
        "--seconds", type=float, default=280, help="start no shape after so long (280)"
    )
    parser.add_argument(
        "--workers", type=int, default=min(12, os.cpu_count() or 1), help="compiling processes"
    )
    parser.add_argument("--compile", metavar="I/N", help=argparse.SUPPRESS)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    shapes = [Shape.parse(n) for n in options.shape or SHAPES if options.only in n]
    if options.compile:
        share, of = options.compile.split("/")
        compile_share(shapes, options.sweep, int(share), int(of))
        return 0
    if not torch.cuda.is_available():
        parser.error("there is no GPU")
    began = time.monotonic()
    if options.workers > 1:
        compile_ahead(arguments, options.workers)
    rate = matmul_rate()
    ahead = time.monotonic() - began
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(f"{device}; matmul {rate:.0f} TFLOP/s; compiled in {ahead:.0f} s")
    print(HEAD)
    rows = []
    for shape in shapes:
        if time.monotonic() - began > options.seconds:
            print(f"{shape.name}: no time left")
            continue
        row = tried(shape.name, lambda shape=shape: measure(shape, options.sweep, options.rep))  # type: ignore[misc]
        torch.cuda.empty_cache()
        if row is not None:
            rows.append(row)
            print("\n".join(line(row, rate, options.sweep)), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"matmul_tflops": rate, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
