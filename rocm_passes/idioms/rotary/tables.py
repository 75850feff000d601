"""Which rotations share tables: two nodes that are one computation of the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.rotary.rotation import Rotation


def same_value(a: Any, b: Any, depth: int = 6) -> bool:
    """Are two nodes the same computation of the same inputs? (Nothing before us merges such
    nodes.)
    """
    if a is b:
        return True
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if (
            depth == 0
            or a.op != "call_function"
            or b.op != "call_function"
            or a.target is not b.target
        ):
            return False
        if not _is_function(a.target):
            return False
        return same_value(a.args, b.args, depth - 1) and same_value(
            tuple(sorted(a.kwargs.items())), tuple(sorted(b.kwargs.items())), depth - 1
        )
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_value(x, y, depth) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt):
        return n.same_size(a, b)
    return (
        type(a) is type(b) and not isinstance(a, (torch.SymFloat, torch.SymBool)) and bool(a == b)
    )


def _is_function(target: Any) -> bool:
    """Does the operator give the same for the same inputs, whenever it is called?"""
    if not isinstance(target, torch._ops.OpOverload):
        # operator.getitem, and arithmetic of sizes.
        return getattr(target, "__module__", "") in ("_operator", "math")
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def share_tables(a: Rotation, b: Rotation) -> bool:
    """Are both rotated by the same angles in the same way, table rows at the same leading axes?"""
    return (
        len(a.lead) == len(b.lead)
        and a.entries == b.entries
        and a.interleaved == b.interleaved
        and a.width == b.width
        and _same_part(a, b)
        and all(same_value(x, y) for x, y in zip(a.tables, b.tables, strict=True))
    )


def _same_part(a: Rotation, b: Rotation) -> bool:
    """Are the same tokens rotated?"""
    if a.partial is None or b.partial is None:
        return a.partial is b.partial
    return (a.partial.axis, a.partial.start) == (b.partial.axis, b.partial.start) and n.same_size(
        a.partial.tokens, b.partial.tokens
    )


def merge_tables(found: Iterable[Rotation]) -> None:
    """One node for each table that is computed more than once from the same inputs."""
    known: dict[tuple[Any, ...], list[fx.Node]] = {}
    for rotation in found:
        rotation.tables = tuple(_representative(t, known) for t in rotation.tables)


def _representative(table: fx.Node, known: dict[tuple[Any, ...], list[fx.Node]]) -> fx.Node:
    alike = known.setdefault((table.op, table.target, str(n.shape(table))), [])
    for other in alike:
        if same_value(other, table):
            return other
    alike.append(table)
    return table
