"""Where a node comes from: the user's file and line, and the module of the model."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import fx

_FRAME = re.compile(
    r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$', re.MULTILINE
)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_COPIED = ("stack_trace", "nn_module_stack", "source_fn_stack", "original_aten", "from_node", "seq_nr")


def location(node: fx.Node) -> str:
    """`file.py:12`, the innermost frame outside torch; empty where the graph does not say."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    outside = [m for m in frames if not m["file"].startswith(_TORCH)]
    innermost = (outside or frames)[-1:] if frames else []
    return f"{innermost[0]['file']}:{innermost[0]['line']}" if innermost else ""


def module(node: fx.Node) -> str:
    """The path of the innermost module, e.g. `blocks.0.attn1.norm_q`; empty where the graph does not say."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    path = re.sub(r"^L\['self'\]\.?", "", str(path))
    path = re.sub(r"_modules\['([^']+)'\]", r"\1", path)
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).strip(".")


def copied(node: fx.Node) -> dict[str, Any]:
    """The metadata that a node made in place of `node` should carry."""
    return {key: node.meta[key] for key in _COPIED if key in node.meta}
