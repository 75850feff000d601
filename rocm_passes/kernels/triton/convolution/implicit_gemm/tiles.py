"""The tiles of a convolution: a table by family of architectures and size of the problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    rows: output pixels. columns: output channels. more_columns: of a second product over the same
    rows (96 = 64 + 32 without a padded column). depth: input channels of one step. warps: counted
    for 32 lanes; launches halve them where a warp has 64. stages: of the loop's pipeline. group:
    pixel blocks whose channel blocks are neighbours in the grid, so that they share rows in caches.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    more_columns: int = 0
    group: int = 8

    @property
    def label(self) -> str:
        """As tables name it: "128x64+32x32 w4 s3"."""
        more = f"+{self.more_columns}" if self.more_columns else ""
        sizes = f"{self.rows}x{self.columns}{more}x{self.depth}"
        return f"{sizes} w{self.warps} s{self.stages}"


@dataclass(frozen=True)
class Row:
    """A tile, and the largest problem that gets it.

    out, channels: of the result and of x. blocks: tiles of 128 by 128 that cover the result.
    multiple: `out` is one of it.
    """

    tile: Tile
    out: int = 2**31
    channels: int = 2**31
    blocks: int = 2**31
    multiple: int = 1

    def takes(self, channels: int, out: int, blocks: int) -> bool:
        at_most = channels <= self.channels and out <= self.out and blocks <= self.blocks
        return at_most and out % self.multiple == 0


#: For bf16 and fp16. The first row that fits is taken. AMD's rows have not run on AMD's GPUs: they
#: were chosen by what the compiler makes of them (`bench.conv_isa`), without spills and without
#: padded columns at 96 and 192.
SIXTEEN_BIT: Mapping[str, tuple[Row, ...]] = {
    # python -m benchmarks.conv_kernel --sweep, on an H100.
    "sm_90": (
        Row(Tile(128, 16, 32, warps=4, stages=4), out=16, channels=32),
        Row(Tile(128, 16, 64, warps=4, stages=4), out=16),
        Row(Tile(128, 32, 32, warps=4, stages=4), out=32),
        Row(Tile(128, 64, 32, warps=4, stages=4), out=64),
        Row(Tile(128, 64, 32, warps=4, stages=4, more_columns=32), out=96),
        Row(Tile(128, 128, 32, warps=4, stages=4), channels=32),
        Row(Tile(128, 128, 64, warps=4, stages=3), out=128),
        Row(Tile(128, 128, 64, warps=8, stages=4, more_columns=64), out=192),
        Row(Tile(128, 128, 64, warps=8, stages=3, more_columns=64), blocks=400, multiple=192),
        Row(Tile(128, 128, 64, warps=4, stages=3), blocks=300),
        Row(Tile(256, 128, 64, warps=8, stages=3)),
    ),
    "nvidia": (
        Row(Tile(128, 16, 32, warps=4, stages=3), out=16),
        Row(Tile(128, 32, 32, warps=4, stages=3), out=32),
        Row(Tile(128, 64, 32, warps=4, stages=3, more_columns=32), out=96, multiple=96),
        Row(Tile(128, 64, 32, warps=4, stages=3)),
    ),
    "cdna": (
        Row(Tile(128, 16, 32, warps=8, stages=2), out=16),
        Row(Tile(128, 32, 32, warps=8, stages=2), out=32),
        Row(Tile(128, 64, 32, warps=8, stages=2), out=64),
        Row(Tile(128, 64, 32, warps=8, stages=2, more_columns=32), out=96),
        Row(Tile(128, 128, 32, warps=8, stages=2), out=128, channels=32),
        Row(Tile(128, 128, 64, warps=8, stages=2), out=128),
        Row(Tile(128, 128, 32, warps=8, stages=2, more_columns=64), out=192),
        Row(Tile(128, 128, 32, warps=8, stages=2), channels=32),
        Row(Tile(128, 128, 64, warps=8, stages=2)),
    ),
    "rdna": (
        Row(Tile(64, 16, 32, warps=4, stages=2), out=16),
        Row(Tile(64, 32, 32, warps=4, stages=2), out=32),
        Row(Tile(64, 64, 32, warps=4, stages=2), out=64),
        Row(Tile(64, 64, 32, warps=4, stages=2, more_columns=32), out=96),
        Row(Tile(128, 64, 32, warps=8, stages=2), out=192),
        Row(Tile(128, 128, 32, warps=8, stages=2)),
    ),
}

#: For fp32, computed exactly (no TF32): on most architectures without matrix instructions.
FLOAT32: Mapping[str, tuple[Row, ...]] = {
    "sm_90": (
        Row(Tile(64, 16, 32, warps=4, stages=2), out=16),
        Row(Tile(64, 64, 32, warps=8, stages=2)),
    ),
    "nvidia": (
        Row(Tile(64, 16, 32, warps=4, stages=2), out=16),
        Row(Tile(64, 64, 32, warps=8, stages=2)),
    ),
    "cdna": (
        Row(Tile(64, 16, 32, warps=8, stages=2), out=16),
        Row(Tile(64, 64, 32, warps=8, stages=2)),
    ),
    "rdna": (
        Row(Tile(64, 16, 16, warps=4, stages=2), out=16),
        Row(Tile(64, 64, 16, warps=8, stages=2)),
    ),
}


def family(arch: str) -> str:
    """The table's name for an architecture; "" (the interpreter) counts as "nvidia"."""
    if arch.startswith("gfx9"):
        return "cdna"
    if arch.startswith("gfx"):
        return "rdna"
    return "sm_90" if arch == "sm_90" else "nvidia"


def choose_tile(arch: str, itemsize: int, pixels: int, channels: int, out: int) -> Tile:
    """The tile for `pixels` output pixels of all frames, C input and O output channels."""
    table = SIXTEEN_BIT if itemsize == 2 else FLOAT32
    blocks = triton.cdiv(pixels, 128) * triton.cdiv(out, 128)
    for row in table[family(arch)]:
        if row.takes(channels, out, blocks):
            return row.tile
    raise AssertionError(f"the last row of {family(arch)} takes every problem")
