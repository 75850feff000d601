"""Compile one module in place, so that every call of it runs compiled and `state_dict` keys
stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from rocm_passes.backend import rocm_diffusion
from rocm_passes.diffusers_pipeline import compiled_before, hooks
from rocm_passes.policy.bounds import RECOMPILE_LIMIT

Function = Callable[..., Any]


def obstacle(module: nn.Module) -> str | None:
    """Why a module is left as it is, or None."""
    return (
        compiled_before.compiled_before(module)
        or compiled_before.untraceable(module)
        or hooks.obstacle(module)
    )


def compile_in_place(
    module: nn.Module,
    *,
    options: Mapping[str, Any],
    dynamic: bool | None,
    graphs: bool = False,
) -> None:
    """As `nn.Module.compile` with this package's backend; with static shapes, room for
    RECOMPILE_LIMIT graphs.

    graphs: the options use CUDA graphs, whose outputs the next call overwrites: results are copied.
    """
    keywords: dict[str, Any] = {"backend": rocm_diffusion, "dynamic": dynamic}
    if options:
        keywords["options"] = dict(options)
    limited = dynamic is False
    if limited and "recompile_limit" in inspect.signature(torch.compile).parameters:
        keywords["recompile_limit"] = int(RECOMPILE_LIMIT.value)
        limited = False
    compiled: Function = torch.compile(_call_of(module), **keywords)
    if limited:
        compiled = _with_limit(compiled)
    if "feat_cache" in inspect.signature(module.forward).parameters:
        compiled = _with_cached_frames(compiled)
    if graphs:
        compiled = _with_own_outputs(compiled)
    setattr(compiled, compiled_before.OURS, True)
    module._compiled_call_impl = compiled


def _call_of(module: nn.Module) -> Function:
    """What to compile, as `nn.Module.compile` does. Dynamo skips frames of torch's own modules (a
    decoder that is an nn.Sequential): these it must inline, into a frame of this file.
    """
    if not type(module).forward.__module__.startswith("torch.nn."):
        return module._call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return call


def _with_limit(compiled: Function) -> Function:
    """For releases where torch.compile takes no recompile limit: Dynamo's own, for the time of a
    call.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=int(RECOMPILE_LIMIT.value)):
            return compiled(*args, **kwargs)

    return call


def _with_own_outputs(compiled: Function) -> Function:
    """Copies the results of CUDA graphs: pipelines keep one prediction while they compute
    the next.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(torch.Tensor, torch.Tensor.clone, compiled(*args, **kwargs))

    return call


class CachedFrames:
    """A feature cache's tensor, as Wan's and Qwen-Image's code uses it, that can be compared with a
    string.

    Their cache holds tensors and the word "Rep", told apart by `==`. Dynamo of torch 2.11 breaks
    the graph where a tensor is compared with a string, which leaves the decoder in pieces.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.tensor[index]

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.tensor.to(*args, **kwargs)


def _with_cached_frames(compiled: Function) -> Function:
    """Passes the feature cache with its tensors as CachedFrames, and puts back what the call leaves
    in it.
    """

    def call(*args: Any, feat_cache: list[Any] | None = None, **kwargs: Any) -> Any:
        if feat_cache is None:
            return compiled(*args, **kwargs)
        held = [CachedFrames(f) if isinstance(f, torch.Tensor) else f for f in feat_cache]
        result = compiled(*args, feat_cache=held, **kwargs)
        feat_cache[:] = [f.tensor if isinstance(f, CachedFrames) else f for f in held]
        return result

    return call
