"""Time that torch, Triton and Python spend in a test process on what no test looks at.

Nothing here changes what is compiled or computed. Each change is left out where a version of torch
or Triton no longer has the function that it replaces.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import logging
import sys
from typing import Any


def everywhere() -> None:
    """All of it, of what this process has imported."""
    without_pytest_in_the_trace()
    if "torch._dynamo.guards" in sys.modules:
        without_guard_timing()
        without_collections_after_compiles()
        without_states_of_random_numbers()
        without_records_of_compiles()
        without_names_of_functions()
        without_patches_of_modules()
    if "triton.runtime.interpreter" in sys.modules:
        without_searches_for_builtins()
        without_unread_overflow_checks()
        without_tables_of_dtypes()
    without_searches_for_garbage()


def without_guard_timing() -> None:
    """Dynamo times the guards of each frame that it compiles, behind a flush of the caches.

    That took half of the 0.2 s that a small graph takes without code generation.
    """
    from torch._dynamo import guards

    if hasattr(guards, "profile_guard_manager"):
        guards.profile_guard_manager = lambda *_: 0.0  # type: ignore[assignment]


def without_collections_after_compiles() -> None:
    """Dynamo collects garbage behind each frame: a hundredth of a small graph's time."""
    from torch._dynamo import config

    if hasattr(config, "run_gc_after_compile"):
        config.run_gc_after_compile = False


def without_states_of_random_numbers() -> None:
    """AOTAutograd makes twelve empty tensors a graph in its fake mode: 6 % of a small graph's time.

    They hold the states of random numbers, which only its option functionalize_rng_ops reads.
    """
    from torch._decomp import decompositions_for_rng
    from torch._functorch import config

    tracker = getattr(decompositions_for_rng, "PhiloxStateTracker", None)
    if not hasattr(tracker, "reset") or not hasattr(config, "functionalize_rng_ops"):
        return
    reset = tracker.reset

    def reset_if_read() -> None:
        if config.functionalize_rng_ops:
            reset()

    reset()
    tracker.reset = staticmethod(reset_if_read)


def without_records_of_compiles() -> None:
    """Dynamo writes all of torch's options down for each graph, and events for a timeline of each.

    That took a twenty-fifth of a small graph's time. Only tools outside the process read it.
    """
    from torch._dynamo import utils

    if hasattr(utils, "record_compilation_metrics"):
        utils.record_compilation_metrics = lambda *_: None  # type: ignore[assignment]
    events = getattr(utils, "ChromiumEventLogger", None)
    if hasattr(events, "_log_timed_event"):
        events._log_timed_event = lambda *_, **__: {}


def without_names_of_functions() -> None:
    """Dynamo tokenizes each file that it traces, to name functions in its debug log."""
    from torch._dynamo import symbolic_convert

    if hasattr(symbolic_convert, "get_funcname"):
        symbolic_convert.get_funcname = lambda *_: None  # type: ignore[assignment]


def without_patches_of_modules() -> None:
    """fx patches two methods of nn.Module for a trace, which AOTAutograd's tracer hands through.

    Python then goes through all 1,800 subclasses: 4 times 2 ms for each small graph.
    """
    from torch import nn
    from torch.fx import _symbolic_trace
    from torch.fx.experimental import proxy_tensor

    tracer = getattr(proxy_tensor, "PythonKeyTracer", None)
    patcher = getattr(_symbolic_trace, "_Patcher", None)
    known = {"getattr", "call_module"} <= set(vars(tracer or object))
    if not known or not hasattr(patcher, "patch_method"):
        return
    trace, patch = tracer.trace, patcher.patch_method
    hand_through = [False]

    def trace_in_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        hand_through.append(type(self) is tracer)
        try:
            return trace(self, *args, **kwargs)
        finally:
            hand_through.pop()

    def patch_others(self: Any, cls: type, *args: Any, **kwargs: Any) -> None:
        if not (hand_through[-1] and cls is nn.Module):
            patch(self, cls, *args, **kwargs)

    tracer.trace, patcher.patch_method = trace_in_turn, patch_others


def without_pytest_in_the_trace() -> None:
    """pytest listens to every logger that does not propagate, torch's structured trace among them.

    Torch then writes every graph and every timing down, and our pass the graph after each step:
    a fifth of a small graph's time. A test that reads the trace has its own handler.
    """
    from torch._logging import _internal

    trace = getattr(_internal, "trace_log", None)
    if trace is None:
        return
    add = trace.addHandler

    def add_others(handler: logging.Handler) -> None:
        if not type(handler).__module__.startswith("_pytest."):
            add(handler)

    trace.addHandler = add_others
    for handler in [h for h in trace.handlers if type(h).__module__.startswith("_pytest.")]:
        trace.removeHandler(handler)


def without_searches_for_builtins() -> None:
    """Triton's interpreter patches its language at each call of a device function, too.

    It searches the language for builtins then, which took more than half of a small kernel's time.
    The launch around the call has patched it already.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    needed = ("_patch_lang", "_patch_builtin", "_LangPatchScope")
    if not all(hasattr(interpreter, name) for name in needed):
        return
    patch_lang, patch_builtin = interpreter._patch_lang, interpreter._patch_builtin
    builtins: dict[int, list[str]] = {}
    languages: dict[Any, list[Any]] = {}

    def names_in(place: Any) -> list[str]:
        return [n for n, member in inspect.getmembers(place) if tl.core.is_builtin(member)]

    def patch_known_builtins(place: Any, builder: Any, scope: Any) -> None:
        if id(place) not in builtins:
            patch_builtin(place, builder, scope)
            return
        for name in builtins[id(place)]:
            member = getattr(place, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(place, name, member, builder, scope)

    def patch_once(fn: Any) -> Any:
        if fn not in languages:
            found = [v for v in fn.__globals__.values() if v is tl or v is tl.core]
            languages[fn] = found
        if not any(tl.core.is_builtin(language.load) for language in languages[fn]):
            return interpreter._LangPatchScope()
        return patch_lang(fn)

    for place in (tl, tl.core, tl.tensor, tl.math):
        builtins[id(place)] = names_in(place)
    interpreter._patch_builtin = patch_known_builtins
    interpreter._patch_lang = patch_once


def without_unread_overflow_checks() -> None:
    """Triton's interpreter makes each sum and product of integers again in 64 bits, and compares.

    It asserts the comparison in debug mode only: otherwise nothing reads it. That took two fifths
    of a convolution's time.
    """
    from triton.runtime import interpreter

    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if hasattr(options, "sanitize_overflow") and not getattr(options, "debug", True):
        builder.options = dataclasses.replace(options, sanitize_overflow=False)


def without_tables_of_dtypes() -> None:
    """Triton's interpreter makes a table of all dtypes to look one up.

    That took a tenth of a kernel's time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    look_up = getattr(interpreter, "_get_np_dtype", None)
    if look_up is None:
        return
    names = ("int1", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
    names += ("float16", "bfloat16", "float32", "float64")
    known = {id(getattr(tl, name)): look_up(getattr(tl, name)) for name in names}

    def look_up_known(dtype: Any) -> Any:
        found = known.get(id(dtype.element_ty if isinstance(dtype, tl.block_type) else dtype))
        return look_up(dtype) if found is None else found

    interpreter._get_np_dtype = look_up_known


def without_searches_for_garbage() -> None:
    """Modules and tests stay to the end: the collector need not look at them again and again.

    A compile leaves some 100,000 objects behind, and collections took a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
