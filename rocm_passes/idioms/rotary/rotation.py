"""The data model of a rotation: what is rotated, by which tables, over which part of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.ops.rotary_layout import TableEntry


@dataclass(frozen=True)
class Partial:
    """Rows start to start + tokens of a leading axis of x are rotated, and the others are
    copied.
    """

    axis: int
    start: int
    tokens: Any


@dataclass
class Rotation:
    """A rotation as the graph spells it.

    x: [*lead, D] before lossless casts, or of another shape that `view` ([*lead, 2P]) reshapes.
    tables and
    entries: of cos1, sin1, cos2, sin2. interleaved: pairs are (2i, 2i+1), else (i, i+P). core: the
    node that holds the rotated pairs; tail: the views and the cast that follow it, up to the
    result. width: rotated channels, the first of D. partial: the tokens that are rotated, where not
    all are. steps: the dtypes that products and sums are computed in; fused: may a sum differ from
    that of rounded products (addcmul, aten.sum)? lossy: a cast inside that no operator repeats.
    rounds_twice: does a cast follow one that is inside? nodes: what a rewrite makes dead.
    """

    anchor: fx.Node
    x: fx.Node
    view: tuple[Any, ...] | None
    lead: tuple[Any, ...]
    interleaved: bool
    width: int
    tables: tuple[fx.Node, ...]
    entries: tuple[TableEntry, ...]
    core: fx.Node
    tail: list[fx.Node]
    steps: frozenset[torch.dtype]
    complex: bool
    nodes: set[fx.Node] = field(default_factory=set)
    partial: Partial | None = None
    leak: fx.Node | None = None
    fused: bool = False
    lossy: fx.Node | None = None
    rounds_twice: bool = False
    scattered: bool = False

    @property
    def result(self) -> fx.Node:
        return self.tail[-1] if self.tail else self.core

    @property
    def fp64(self) -> bool:
        return torch.float64 in self.steps

    def parameters(self) -> dict[str, Any]:
        return {
            "pairs": "interleaved" if self.interleaved else "half-split",
            "channels": self.width,
            "of_channels": n.shape(self.x)[-1] if self.view is None else self.width,
            "tokens_from": None if self.partial is None else self.partial.start,
            "x_dtype": n.dtype(self.x),
            "table_dtype": n.dtype(self.tables[0]),
            "computes_in": torch.float64 if self.fp64 else torch.float32,
            "out_dtype": n.dtype(self.result),
        }
