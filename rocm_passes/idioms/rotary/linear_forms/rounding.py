"""Where a rotation's graph rounds: which casts are moves, which are recorded, which no operator
repeats.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.rotary.linear_forms.value import Known, Value, has_factors, real_dtype

#: What each dtype's values fit into without loss, besides itself.
_HOLDS = {
    torch.float16: {torch.float32, torch.float64},
    torch.bfloat16: {torch.float32, torch.float64},
    torch.float32: {torch.float64},
}


def is_lossless(source: torch.dtype, result: torch.dtype) -> bool:
    return source == result or result in _HOLDS.get(source, ())


#: addcmul may add its product unrounded; a sum begins at zero, to which a -0 adds nothing.
_FUSED = frozenset({aten.addcmul.default, aten.sum.dim_IntList})


def with_rounding(
    node: fx.Node, found: Value, known: Known, arithmetic: Collection[object]
) -> Value | None:
    """The node's value with what its dtype says of rounding; None where another x begins."""
    inputs = _inputs(node, known)
    if not inputs:
        # An item of a split: its casts came with the value that was split.
        return found
    result = real_dtype(node)
    lossy = [v.lossy for _, v in inputs if v.lossy is not None]
    steps = frozenset[torch.dtype]().union(*(v.steps for _, v in inputs))
    fused = node.target in _FUSED or any(v.fused for _, v in inputs)
    found = replace(found, fused=fused)
    if node.target in arithmetic:
        lossy += [v.rounded for _, v in inputs if v.rounded is not None]
        # A sum may be told to compute in a narrower dtype than its input's.
        lossy += [node for i, _ in inputs if not is_lossless(real_dtype(i), result)]
        return replace(found, steps=steps | {result}, rounded=None, lossy=next(iter(lossy), None))
    rounded: set[fx.Node | None] = set()
    for source, value in inputs:
        if not has_factors(value):
            if not is_lossless(value.x_dtype, result):
                return None
            continue
        last, lost = _moved(node, real_dtype(source), result, value)
        rounded.add(last)
        lossy += [lost] if lost is not None else []
    if len({r if r is None else real_dtype(r) for r in rounded}) > 1:
        lossy += [r for r in rounded if r is not None]
    last = next(iter(rounded), None)
    return replace(found, steps=steps, rounded=last, lossy=next(iter(lossy), None))


def _inputs(node: fx.Node, known: Known) -> list[tuple[fx.Node, Value]]:
    """The linear forms that the node reads values of (aten.copy reads none of its
    destination's).
    """
    read = [n.argument(node, 1)] if n.is_call(node, aten.copy.default) else node.all_input_nodes
    found = [(i, known.get(i)) for i in read]
    return [(i, v) for i, v in found if isinstance(v, Value)]


def _moved(
    node: fx.Node, source: torch.dtype, result: torch.dtype, value: Value
) -> tuple[fx.Node | None, fx.Node | None]:
    """(the last rounding, a lossy cast) of a value with factors that is moved or cast."""
    if source == result:
        return value.rounded, None
    if is_lossless(source, result):
        return None, value.rounded
    if result in n.FLOATING and source in (*n.FLOATING, torch.float64):
        return node, value.rounded
    return None, node
