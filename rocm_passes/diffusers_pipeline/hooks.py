"""Hooks that move or convert weights: where they stand decides whether a module can be compiled.

A hook runs outside of any graph: Dynamo breaks the graph there. Before or behind a compiled module
that costs nothing; within it, the graph falls into pieces of one layer each, in which no idiom is
found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

SEQUENTIAL = "sequential CPU offloading moves its weights within a call"
DEVICE_MAP = "device_map attached hooks to its layers; Dynamo breaks the graph at each"
LAYERWISE = "layerwise casting converts the weights at each layer, where Dynamo breaks the graph"
GROUP = (
    "group offloading ({level}) moves weights within a call, and Dynamo breaks the graph at "
    "each move"
)
FSDP = "FSDP gathers its weights before a call"
CONTEXT_PARALLEL = (
    "context parallelism splits and gathers tokens within it, and Dynamo breaks the graph there"
)
PART_OFFLOAD = "CPU offloading of one of its parts moves weights within a call"


def obstacle(module: nn.Module) -> str | None:
    """Why hooks on the module or within it prevent compiling it as one graph, or None."""
    for submodule in module.modules():
        for hook in hooks_of(submodule):
            reason = _reason(hook, within=submodule is not module)
            if reason is not None:
                return reason
    return None


def _reason(hook: Any, within: bool) -> str | None:
    names = {c.__name__ for c in type(hook).__mro__}
    if "AlignDevicesHook" in names:
        if getattr(hook, "offload", False):
            return SEQUENTIAL
        return DEVICE_MAP if within else None
    if "LayerwiseCastingHook" in names:
        return LAYERWISE
    if within and "GroupOffloadingHook" in names:
        return GROUP.format(level=_level(hook))
    if within and "CpuOffload" in names:
        return PART_OFFLOAD
    return None


def _level(hook: Any) -> str:
    level = getattr(getattr(hook, "config", None), "offload_type", None)
    return str(getattr(level, "value", level or "unknown level"))


def note(module: nn.Module) -> str | None:
    """What hooks do outside of the module's graph, for the report, or None."""
    for hook in hooks_of(module):
        names = {c.__name__ for c in type(hook).__mro__}
        if "CpuOffload" in names:
            return "model CPU offloading moves it before a call"
        if "GroupOffloadingHook" in names:
            return f"group offloading ({_level(hook)}) moves it before a call"
        if "AlignDevicesHook" in names:
            return "device_map moves its inputs before a call"
    return FSDP if is_sharded(module) else None


def is_sharded(module: nn.Module) -> bool:
    """Has fully_shard (FSDP2) taken the module?"""
    return any(c.__name__ == "FSDPModule" for c in type(module).__mro__)


def splits_tokens(module: nn.Module) -> bool:
    """Does diffusers' context parallelism split or gather at a module within this one?"""
    names = {type(h).__name__ for m in module.modules() if m is not module for h in hooks_of(m)}
    return not names.isdisjoint({"ContextParallelSplitHook", "ContextParallelGatherHook"})


def any_below(module: nn.Module) -> bool:
    """Whether any module below this one has a hook: block caches, group offloading, device_map,
    casting, context parallelism, FSDP.
    """
    below = [m for m in module.modules() if m is not module]
    return any(is_sharded(m) or next(hooks_of(m), None) is not None for m in below)


def moves_weights(module: nn.Module) -> bool:
    """Whether hooks on the module or below it may move its weights between calls, or within."""
    return any_below(module) or note(module) is not None


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """The module's hooks of accelerate (`_hf_hook`) and of diffusers (`_diffusers_hook`), one by
    one.
    """
    own = getattr(module, "_hf_hook", None)
    if own is not None:
        yield from getattr(own, "hooks", None) or (own,)
    registry = getattr(module, "_diffusers_hook", None)
    yield from getattr(registry, "hooks", {}).values()
