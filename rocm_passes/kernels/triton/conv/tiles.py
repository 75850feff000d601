"""Which tile a convolution is computed in: rows of a table, by family of architectures and size of the problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rocm_passes.kernels.triton.common import cdiv


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    rows: output pixels. columns: output channels; with `more_columns`, a second product of so many shares the rows
    (96 = 64 + 32 without a padded column). depth: input channels of one product; `unroll` products make one step of
    the loop. warps are counted for 32 lanes; launches halve them where a warp has 64. stages: of the loop's
    pipeline. group: pixel blocks whose channel blocks run one after another, so that they share rows in the cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    unroll: int = 1
    more_columns: int = 0
    group: int = 8


@dataclass(frozen=True)
class Row:
    """A tile for problems of at most so many output channels, input channels and full-size tiles of 128 by 128."""

    tile: Tile
    out: int = 2**31
    channels: int = 2**31
    blocks: int = 2**31


#: For bf16 and fp16. The first row that fits is taken.
SIXTEEN_BIT: Mapping[str, tuple[Row, ...]] = {
    "sm_90": (
        Row(Tile(128, 16, 32, warps=4, stages=4), out=16),
        Row(Tile(128, 32, 32, warps=4, stages=4), out=32),
        Row(Tile(128, 64, 32, warps=4, stages=4), out=64),
        Row(Tile(128, 64, 32, warps=4, stages=4, more_columns=32), out=96, channels=96),
        Row(Tile(128, 128, 64, warps=8, stages=3), out=128),
        Row(Tile(128, 128, 64, warps=8, stages=3), blocks=132),
        Row(Tile(128, 128, 64, warps=8, stages=3, more_columns=64), out=192),
        Row(Tile(128, 128, 64, warps=8, stages=3)),
    ),
    "nvidia": (
        Row(Tile(128, 16, 32, warps=4, stages=3), out=16),
        Row(Tile(128, 32, 32, warps=4, stages=3), out=32),
        Row(Tile(128, 64, 32, warps=4, stages=3)),
    ),
    "cdna": (
        Row(Tile(128, 16, 32, warps=8, stages=2), out=16),
        Row(Tile(128, 32, 32, warps=8, stages=2), out=32),
        Row(Tile(128, 64, 32, warps=8, stages=2), out=64),
        Row(Tile(128, 64, 32, warps=8, stages=2, more_columns=32), out=96),
        Row(Tile(128, 128, 32, warps=8, stages=2)),
    ),
    "rdna": (
        Row(Tile(64, 16, 32, warps=4, stages=2), out=16),
        Row(Tile(64, 32, 32, warps=4, stages=2), out=32),
        Row(Tile(64, 64, 32, warps=4, stages=2), out=64),
        Row(Tile(64, 64, 32, warps=4, stages=2, more_columns=32), out=96),
        Row(Tile(128, 64, 32, warps=8, stages=2)),
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
    """The table's name for an architecture: "gfx942" is "cdna", "sm_86" "nvidia"; "" (the interpreter) as well."""
    if arch.startswith("gfx9"):
        return "cdna"
    if arch.startswith("gfx"):
        return "rdna"
    return "sm_90" if arch == "sm_90" else "nvidia"


def choose_tile(arch: str, itemsize: int, pixels: int, channels: int, out: int) -> Tile:
    """The tile for `pixels` output pixels of all frames, C input and O output channels."""
    table = SIXTEEN_BIT if itemsize == 2 else FLOAT32
    blocks = cdiv(pixels, 128) * cdiv(out, 128)
    for row in table[family(arch)]:
        if out <= row.out and channels <= row.channels and blocks <= row.blocks:
            return row.tile
    raise AssertionError(f"the last row of {family(arch)} takes every problem")
