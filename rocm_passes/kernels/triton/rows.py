"""Numbering the rows of a tensor: leading dims collapsed to at most three, with strides per
operand.

A row kernel works on the last dim; every leading dim is only a way to find a row. Operands of
different layouts (a [B,S,D] stream, a [B,1,D] table, a per-head view of a fused projection) share
one numbering if each has its own strides over the collapsed dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton

MAX_DIMS = 3


@dataclass(frozen=True)
class RowIndex:
    """Rows numbered over `sizes`; `strides[k]` are operand k's element strides over the
    same dims.
    """

    sizes: tuple[int, int, int]
    strides: tuple[tuple[int, int, int], ...]
    rank: int

    @property
    def rows(self) -> int:
        return self.sizes[0] * self.sizes[1] * self.sizes[2]

    @property
    def last_size(self) -> int:
        """Size of the innermost dim that is really there."""
        return self.sizes[self.rank - 1] if self.rank else 1

    def constant(self, operand: int) -> bool:
        """The operand is the same for every row."""
        return not any(self.strides[operand])

    def constant_in_group(self, operand: int) -> bool:
        """The operand is the same for all rows that differ in the innermost dim only."""
        return self.rank == 0 or self.strides[operand][self.rank - 1] == 0


@dataclass(frozen=True)
class RowBlocks:
    """Rows in groups of `inner`, groups in blocks of `rows_per_block`; no block crosses a group."""

    inner: int
    blocks_per_group: int
    blocks: int

    @classmethod
    def over(cls, index: RowIndex, rows_per_block: int, grouped: bool) -> RowBlocks:
        inner = index.last_size if grouped else index.rows
        per_group = triton.cdiv(inner, rows_per_block)
        return cls(inner, per_group, per_group * (index.rows // inner))


def collapse(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> RowIndex | None:
    """Merge neighbouring dims wherever all operands allow it; None where more than three dims are
    left.

    `strides[k]` are operand k's strides over `sizes` (0 where it is broadcast).
    """
    merged: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(sizes):
        if size == 1:
            continue
        here = [s[dim] for s in strides]
        if merged and all(outer == size * s for outer, s in zip(merged[-1][1], here, strict=True)):
            merged[-1] = (merged[-1][0] * size, here)
        else:
            merged.append((size, here))
    rank = len(merged)
    if rank > MAX_DIMS:
        return None
    merged += [(1, [0] * len(strides))] * (MAX_DIMS - rank)
    (n0, s0), (n1, s1), (n2, s2) = merged
    return RowIndex((n0, n1, n2), tuple(zip(s0, s1, s2, strict=True)), rank)
