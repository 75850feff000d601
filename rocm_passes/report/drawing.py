"""A site's nodes before and after its rewrite, as plain data that fits into the ledger's JSON.

A drawing is a list of steps in topological order. Each has a `label` (the operator and its
numbers), the `value` that it gives (`bfloat16[1, 240, 48]`), the positions of its `inputs` in the
list, and a `kind`: "input", "step" or "output". report/svg.py draws it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

log = logging.getLogger(__name__)

#: Longer drawings end here; nobody reads them, and a ledger has thousands.
MOST_STEPS = 60
MOST_LETTERS = 34

Step = Mapping[str, Any]


def of(
    inside: Collection[fx.Node],
    outputs: Sequence[fx.Node],
    names: Mapping[fx.Node, str] | None = None,
) -> list[Step]:
    """The steps that compute `outputs` within `inside`; other nodes that they read are inputs.

    names: of inputs, as the operator's call names them. An exception gives an empty drawing: a
    picture is worth no compile.
    """
    try:
        return list(_steps(frozenset(inside), outputs, names or {}))[:MOST_STEPS]
    except Exception:
        log.exception("rocm_passes: a site could not be drawn")
        return []


def _steps(
    inside: frozenset[fx.Node], outputs: Sequence[fx.Node], names: Mapping[fx.Node, str]
) -> Iterator[Step]:
    places: dict[fx.Node, int] = {}
    for node in _in_order(inside, outputs):
        places[node] = len(places)
        if node not in inside:
            yield {"label": names.get(node, "input"), "value": _value(node), "inputs": [],
                   "kind": "input"}  # fmt: skip
            continue
        kind = "output" if node in outputs else "step"
        inputs = [places[i] for i in node.all_input_nodes]
        yield {"label": _label(node), "value": _value(node), "inputs": inputs, "kind": kind}


def _in_order(inside: frozenset[fx.Node], outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The outputs and what they read, each node behind its inputs."""
    order: dict[fx.Node, None] = {}
    waiting = [(node, False) for node in reversed(outputs)]
    while waiting:
        node, inputs_done = waiting.pop()
        if node in order:
            continue
        if inputs_done or node not in inside:
            order[node] = None
            continue
        waiting.append((node, True))
        waiting += [(i, False) for i in reversed(node.all_input_nodes)]
    return list(order)


def named(arguments: Mapping[str, Any]) -> dict[fx.Node, str]:
    """The graph nodes among a call's arguments, each with the name of its argument."""
    found: dict[fx.Node, str] = {}
    for name, value in arguments.items():
        values = value if isinstance(value, (list, tuple)) else (value,)
        for node in values:
            if isinstance(node, fx.Node):
                found.setdefault(node, name)
    return found


def _label(node: fx.Node) -> str:
    """`mean [-1]`, `pow 2`, `to bfloat16`, `rocm_passes.rms_norm`."""
    if _name(node.target).startswith("rocm_passes."):
        # Its arguments are those of the nodes that it stands for.
        return _name(node.target)
    numbers = [_short(a) for a in node.args if not _holds_node(a)]
    numbers += [f"{k}={_short(v)}" for k, v in node.kwargs.items() if not _holds_node(v)]
    name = _name(node.target)
    if name == "convert_element_type":
        name = "to"
    label = " ".join([name, ", ".join(n for n in numbers if n)]).strip()
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"


def _name(target: str | Callable[..., Any]) -> str:
    if isinstance(target, torch._ops.OpOverload):
        prefix = "" if target.namespace in ("aten", "prims") else f"{target.namespace}."
        return f"{prefix}{target._opname}"
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).removeprefix("torch.")


def _holds_node(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_node(v) for v in value)
    return isinstance(value, fx.Node)


def _value(node: fx.Node) -> str:
    found = node.meta.get("val")
    if not isinstance(found, torch.Tensor):
        return ""
    return f"{_short(found.dtype)}[{', '.join(map(str, found.shape))}]"
