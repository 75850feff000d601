"""What a user has compiled before: a module that runs compiled code of another call is left
alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

#: Set on the compiled call of a module by `compiling.compile_in_place`.
OURS = "_rocm_passes"


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what `torch.compile(module)` returns; any other module as it is."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def compiled_before(module: nn.Module) -> str | None:
    """How a call of the module already runs compiled code, or None."""
    if isinstance(module, OptimizedModule):
        return "compiled already, by torch.compile(module)"
    if module._compiled_call_impl is not None:
        ours = getattr(module._compiled_call_impl, OURS, False)
        return f"compiled already, by {'compile_pipeline' if ours else 'its method compile()'}"
    if is_compiled_function(module.forward):
        return "compiled already: its forward is a compiled function"
    return None


def is_compiled_function(function: Any) -> bool:
    """Whether `torch.compile` made a function. Wrappers that copy a function's attributes count
    with it.
    """
    return getattr(function, "_torchdynamo_orig_callable", None) is not None and not is_disabled(
        function
    )


def is_disabled(function: Any) -> bool:
    """Whether `torch.compiler.disable` made a function."""
    return bool(getattr(function, "_torchdynamo_disable", False))


def compiled_method(module: nn.Module, word: str) -> str | None:
    """A method with `word` in its name ("decode", "_decode", "tiled_decode") that is a compiled
    function.
    """
    names = {n for owner in type(module).__mro__ for n in vars(owner)} | set(vars(module))
    for name in sorted(n for n in names if word in n):
        static = inspect.getattr_static(module, name)
        if callable(static) and is_compiled_function(static):
            return name
    return None


def compiled_inside(module: nn.Module) -> int:
    """How many modules below this one are compiled already."""
    return sum(compiled_before(m) is not None for m in _below(module))


def _below(module: nn.Module) -> Iterator[nn.Module]:
    modules = module.modules()
    next(modules)
    return modules


def untraceable(module: nn.Module) -> str | None:
    """Why Dynamo would not trace a call of the module, so that compiling it would change
    nothing.
    """
    if torch._dynamo.config.disable:
        return (
            "torch.compile is disabled in this process (TORCH_COMPILE_DISABLE or "
            "torch._dynamo.config)"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module, which Dynamo does not trace"
    forward: Callable[..., Any] = module.forward
    if is_disabled(forward):
        return "torch.compiler.disable was applied to its forward"
    return None
