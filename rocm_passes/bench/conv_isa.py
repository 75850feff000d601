"""What the convolution kernel becomes on AMD's GPUs, in the tiles that each of them gets.

    python -m rocm_passes.bench.conv_isa            print the table
    python -m rocm_passes.bench.conv_isa --json     one JSON object a line
    python -m rocm_passes.bench.conv_isa --ones all     compile with integers that are 1

Compiled as Inductor launches it: pointers and strides are divisible by 16, and nothing says that
offsets fit into 31 bits (`tt.pointer_range`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rocm_passes.bench import isa
from rocm_passes.bench.isa_examples import IsaExample, isa_example
from rocm_passes.kernels.triton.convolution.implicit_gemm.kernel import SIZES, conv_kernel
from rocm_passes.kernels.triton.convolution.implicit_gemm.tiles import Tile, choose_tile
from rocm_passes.target import AMD_ARCHITECTURES

MATRIX = re.compile(r"^\s+v_(?:mfma|wmma|swmmac)_\w+", re.MULTILINE)
WIDE_LOAD = re.compile(r"^\s+(?:global|buffer|flat)_load_(?:dwordx4|b128)\b", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """One call on one architecture. warps: as launched. wide_loads: of 16 bytes."""

    shape: str
    arch: str
    tile: str
    warps: int
    registers: int
    spills: int
    scratch_bytes: int
    lds_bytes: int
    occupancy: int
    matrix_instructions: int
    wide_loads: int
    fp64_instructions: int


@dataclass(frozen=True)
class Shape:
    """A call: channels in and out, pixels of the result, and constexprs other than the plain."""

    label: str
    channels: int
    out: int
    pixels: int
    dtype: str = "bf16"
    taps: int = 3
    others: tuple[tuple[str, Any], ...] = (("HAS_FRONT", True),)


SHAPES = (
    Shape("384-384 3x3x3, 2 frames of 120x208", 384, 384, 2 * 120 * 208),
    Shape("192-192 3x3x3, 4 frames of 240x416", 192, 192, 4 * 240 * 416),
    Shape("96-96 3x3x3, 4 frames of 480x832", 96, 96, 4 * 480 * 832),
    Shape("96-3 3x3x3, 4 frames of 480x832", 96, 3, 4 * 480 * 832),
    Shape(
        "128-128 3x3x3 replicate, 17 frames of 256x256", 128, 128, 17 * 256 * 256, "fp16",
        others=(("SPACE_REPLICATE", True), ("TIME_REPLICATE", True), ("HAS_RESIDUAL", True)),
    ),
    Shape(
        "512-512 3x3 upsampled, 256x256", 512, 512, 256 * 256, taps=1,
        others=(("RH", 2), ("RW", 2), ("SILU", True)),
    ),
    Shape("96-96 3x3x3, 4 frames of 480x832", 96, 96, 4 * 480 * 832, "fp32"),
)  # fmt: skip


#: The kernel's branches that its integer arguments reach.
VARIANTS: tuple[tuple[tuple[str, Any], ...], ...] = (
    (("SPACE_REPLICATE", True), ("TIME_REPLICATE", True), ("WIDE", True)),
    (("RH", 2), ("RT", 2)),
    (("HAS_FRONT", True), ("KT", 5)),
    (("HAS_FRONT", True), ("HAS_RESIDUAL", True), ("WIDE", True)),
)


def example(shape: Shape, tile: Tile) -> IsaExample:
    """The kernel for such a call, in that tile."""
    constexprs = {
        "C": shape.channels, "OUT": shape.out, "KT": shape.taps, "KH": 3, "KW": 3,
        "ST": 1, "SH": 1, "SW": 1, "DT": 1, "DH": 1, "DW": 1, "PT": 0, "PH": 1, "PW": 1,
        "RT": 1, "RH": 1, "RW": 1, "SKIPPED": 0, "TIME_REPLICATE": False, "SPACE_REPLICATE": False,
        "HAS_FRONT": False, "HAS_BIAS": True, "HAS_RESIDUAL": False, "SILU": False,
        "WIDE": False, "WIDEN": False, "BM": tile.rows, "BN": tile.columns,
        "BN2": tile.more_columns, "BK": tile.depth, "GROUP": tile.group,
        "STAGES": tile.stages, "res_stride_c": 1,
    } | dict(shape.others)  # fmt: skip
    names = ("x_ptr", "front_ptr", "w_ptr", "bias_ptr", "res_ptr", "out_ptr")
    pointers = dict.fromkeys(names, f"*{shape.dtype}")
    label = f"{shape.label} {shape.dtype}"
    return isa_example(conv_kernel, label, pointers, constexprs, tile.warps)


def compiled(shape: Shape, arch: str) -> Compiled:
    """The call compiled for an architecture in its tile."""
    itemsize = 4 if shape.dtype == "fp32" else 2
    tile = choose_tile(arch, itemsize, shape.pixels, shape.channels, shape.out)
    found = example(shape, tile)
    wave = 64 if arch.startswith("gfx9") else 32
    warps = max(1, tile.warps // 2) if wave == 64 else tile.warps
    binary = _compile(found, arch, wave, warps)
    assembly = binary.asm["amdgcn"]
    return Compiled(
        shape=found.label,
        arch=arch,
        tile=tile.label,
        warps=warps,
        registers=isa.number_in(r"\.vgpr_count:\s*(\d+)", assembly),
        spills=isa.number_in(r"\.vgpr_spill_count:\s*(\d+)", assembly),
        scratch_bytes=isa.number_in(r"; ScratchSize: (\d+)", assembly),
        lds_bytes=int(binary.metadata.shared),
        occupancy=isa.number_in(r"; Occupancy:\s*(\d+)", assembly),
        matrix_instructions=len(MATRIX.findall(assembly)),
        wide_loads=len(WIDE_LOAD.findall(assembly)),
        fp64_instructions=len(isa.FP64.findall(assembly)),
    )


def _compile(found: IsaExample, arch: str, wave: int, warps: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = list(found.kernel.arg_names)
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(arguments)
        if found.signature[name] != "constexpr" and name not in SIZES
    }
    source = ASTSource(
        fn=found.kernel,
        signature={name: found.signature[name] for name in arguments},
        constexprs=dict(found.constexprs),
        attrs=divisible,
    )
    options = {"num_warps": warps}
    return triton.compile(source, target=GPUTarget("hip", arch, wave), options=options)


def every(architectures: Iterable[str]) -> Iterator[Compiled]:
    """Each shape on each architecture."""
    for shape in SHAPES:
        for arch in architectures:
            yield compiled(shape, arch)


def specialised_to_one(arch: str, one_by_one: bool) -> None:
    """Compile with integers that are 1, of which a launch makes constexprs: with all at once in
    each variant, or in the last one with each alone.
    """
    tile = Tile(64, 32, 32, warps=4, stages=2, more_columns=16)
    wave = 64 if arch.startswith("gfx9") else 32
    variants = [example(Shape("1", 96, 96, 1, others=others), tile) for others in VARIANTS]
    if one_by_one:
        cases = [(variants[-1], (name,)) for name in isa.integers(variants[-1])]
    else:
        cases = [(found, isa.integers(found)) for found in variants]
    for found, names in cases:
        _compile(isa.with_ones(found, names), arch, wave, tile.warps)


def table(rows: Sequence[Compiled]) -> str:
    """Markdown, one row a shape and architecture."""
    head = (
        "call", "arch", "tile", "warps", "VGPRs", "spills", "LDS bytes", "waves/SIMD",
        "matrix instructions", "16-byte loads",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = (
            r.shape, r.arch, r.tile, r.warps, r.registers, r.spills, r.lds_bytes, r.occupancy,
            r.matrix_instructions, r.wide_loads,
        )  # fmt: skip
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rocm_passes.bench.conv_isa")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--arch", action="append", choices=AMD_ARCHITECTURES, help="only these")
    parser.add_argument(
        "--ones", choices=("all", "each"), help="compile with integers that are 1, or each alone"
    )
    options = parser.parse_args(argv)
    if options.ones:
        specialised_to_one(AMD_ARCHITECTURES[0], one_by_one=options.ones == "each")
        return 0
    rows = list(every(options.arch or AMD_ARCHITECTURES))
    if options.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
