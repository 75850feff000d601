"""Where a node comes from: the user's file and line, and the module of the model."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.fx import proxy

_FRAME = re.compile(
    r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$', re.MULTILINE
)
#: A step of an expression: `.blocks`, `['blocks']` or `[0]`.
_STEP = re.compile(
    r"""\.?(?P<name>\w+)|\[(?P<quote>['"])(?P<key>.*?)(?P=quote)\]|\[(?P<index>\d+)\]"""
)
#: Steps that lead through Python's and torch's own objects: a module's dictionaries, what
#: torch.compile and a bound method wrap.
_NO_MODULES = frozenset({"_modules", "__dict__", "_orig_mod", "__self__"})
#: Folders that packages are installed in.
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_TORCH = os.path.dirname(torch.__file__) + os.sep
#: What torch copies from a call to the nodes of its decomposition, so that a later pass treats them
#: as it would the call: `recompute` and `ac_graph_id` of activation checkpointing,
#: `partitioner_tag`, `custom`, ... The private list is read, as each torch version adds to it; the
#: names below are those that torch copies elsewhere.
_COPIED = tuple(
    dict.fromkeys(
        (
            *(
                "stack_trace",
                "nn_module_stack",
                "source_fn_stack",
                "original_aten",
                "from_node",
                "seq_nr",
            ),
            *(
                "recompute",
                "ac_graph_id",
                "has_backward_hook",
                "partitioner_tag",
                "custom",
                "torch_fn",
            ),
            *(
                "autograd_backward",
                "fwd_nn_module_stack",
                "fwd_source_fn_stack",
                "is_functional_regenerated",
            ),
            *getattr(proxy, "_COPY_META_FIELDS", ()),
        )
    )
)


def location(node: fx.Node) -> str:
    """`diffusers/models/attention.py:12`, the innermost frame outside torch; empty where the graph
    does not say.
    """
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    outside = [m for m in frames if not m["file"].startswith(_TORCH)]
    innermost = (outside or frames)[-1:] if frames else []
    return f"{short(innermost[0]['file'])}:{innermost[0]['line']}" if innermost else ""


def short(file: str) -> str:
    """An installed file relative to the folder of its package, another relative to the working
    directory.

    A file that is under neither keeps its absolute path.
    """
    parts = Path(file).parts
    # First, as an environment often lies in the working directory.
    for at in range(len(parts) - 1, 0, -1):
        if parts[at] in _PACKAGES:
            return "/".join(parts[at + 1 :])
    try:
        return Path(file).relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):  # not beneath it; no working directory any more
        return file


def module(node: fx.Node) -> str:
    """The path of the innermost module in its model, e.g. `blocks.0.attn1.norm_q`; empty for the
    model itself.

    Empty too where the graph does not say.
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    # An expression of Dynamo's guards: L['self']._modules['blocks'][0].attn1
    path = [
        p["name"] or p["key"] or p["index"]
        for p in _STEP.finditer(str(list(stack.values())[-1][0]))
    ]
    if path[:1] in (["L"], ["G"]):
        # A local or global variable, and its name.
        path = path[2:]
    return ".".join(name for name in path if name not in _NO_MODULES)


def component(node: fx.Node) -> str:
    """The model's source file, `transformer_wan`: of the frames outside torch the outermost in a
    folder `models` of an installed package, else in the package, else any; empty where the graph
    does not say.
    """
    found = _FRAME.finditer(node.meta.get("stack_trace") or "")
    frames = [Path(m["file"]) for m in found if not m["file"].startswith(_TORCH)]
    installed = [file for file in frames if not _PACKAGES.isdisjoint(file.parts)]
    models = [file for file in installed if "models" in file.parts]
    return (models or installed or frames)[0].stem if frames else ""


def copied(node: fx.Node) -> dict[str, Any]:
    """The metadata that a node made in place of `node` should carry.

    Not what describes the very value (`val`, `tensor_meta`) or the call's arguments
    (`eager_input_vals`).
    """
    return {key: copy.copy(node.meta[key]) for key in _COPIED if key in node.meta}
