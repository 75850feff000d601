"""Compile ahead: run the pipeline once for each given size, and say which parts compiled and how
long it took.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.errors import OptionError, nearest
from rocm_passes.policy.bounds import WARM_STEPS

Sizes = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def calls(pipe: Any, warm: Sizes | None, option: str = "warm") -> list[dict[str, Any]]:
    """The keyword arguments of each run that the option of that name asks for. Raises OptionError
    on a name that the pipeline does not take.
    """
    if warm is None:
        return []
    given = [warm] if isinstance(warm, Mapping) else warm
    if not isinstance(given, (list, tuple)) or not all(isinstance(g, Mapping) for g in given):
        raise OptionError.value(option, "a dict of call arguments, or a list of them", warm)
    names, any_name = _arguments(pipe)
    result = []
    for each in given:
        arguments = dict(each)
        if "steps" not in names and "num_inference_steps" in names and "steps" in arguments:
            arguments["num_inference_steps"] = arguments.pop("steps")
        unknown = [n for n in arguments if n not in names and not any_name]
        if unknown:
            raise OptionError(
                f"{option}: {type(pipe).__name__} takes no argument "
                f"{unknown[0]!r}{nearest(unknown[0], names)}"
            )
        result.append(arguments)
    return result


def run(pipe: Any, arguments: Mapping[str, Any], report: Report) -> None:
    """Run the pipeline once without gradients; the generators of random numbers are left as they
    were.

    Adds a line to the report: seconds of the first calls of each compiled part, and which parts did
    not run.
    """
    devices = _accelerators(report.modules)
    with _watched(report.modules) as seconds, torch.no_grad(), random_state(devices):
        pipe(**_completed(pipe, arguments, report))
    sizes = ", ".join(f"{k}={v}" for k, v in arguments.items() if isinstance(v, (int, float, str)))
    ran = [f"{name} {spent:.1f} s" for name, spent in seconds.items()]
    missed = [name for name in report.modules if name not in seconds]
    detail = ", ".join(ran) or "no compiled part ran"
    if missed:
        detail += f"; did not run: {', '.join(missed)}"
    report.add("warm", "warm", f"{sizes or 'defaults'}: first calls: {detail}")


def once(pipe: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    """Run the pipeline for each of these arguments as `run` does, and report nothing."""
    found = [pipe] if isinstance(pipe, nn.Module) else pipe.components.values()
    modules = [each for each in found if isinstance(each, nn.Module)]
    with torch.no_grad(), random_state(_accelerators({"": modules})):
        for arguments in runs:
            pipe(**_completed(pipe, arguments, Report()))


def _arguments(pipe: Any) -> tuple[set[str], bool]:
    function = pipe.forward if isinstance(pipe, nn.Module) else pipe.__call__
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _completed(pipe: Any, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """With few steps, some prompt, and without decoding where no compiled part would run in it."""
    if isinstance(pipe, nn.Module):
        return dict(arguments)
    names, _ = _arguments(pipe)
    defaults: dict[str, Any] = {"num_inference_steps": int(WARM_STEPS.value)}
    if "prompt_embeds" not in arguments:
        defaults["prompt"] = "a photo"
    if not any(name.endswith(".decoder") for name in report.modules):
        defaults["output_type"] = "latent"
    return {k: v for k, v in defaults.items() if k in names} | dict(arguments)


@contextmanager
def _watched(modules: Mapping[str, list[nn.Module]]) -> Iterator[dict[str, float]]:
    """Sums the seconds of the first call of each module; prints a line where a part begins to
    compile.
    """
    seconds: dict[str, float] = {}
    compiled = [
        (module, module._compiled_call_impl) for each in modules.values() for module in each
    ]
    try:
        for name, each in modules.items():
            for module in each:
                module._compiled_call_impl = _timed(name, module._compiled_call_impl, seconds)
        yield seconds
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def _timed(name: str, call: Any, seconds: dict[str, float]) -> Any:
    first = True

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if not first:
            return call(*args, **kwargs)
        first = False
        if name not in seconds:
            print(f"compile_pipeline: warm: {name}: compiling", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start

    return timed


def _accelerators(modules: Mapping[str, list[nn.Module]]) -> set[torch.device]:
    """Those that hold the compiled parts, which need not be the current one."""
    weights = (p for each in modules.values() for m in each for p in m.parameters())
    return {w.device for w in weights if w.device.type not in ("cpu", "meta")}


@contextmanager
def random_state(devices: set[torch.device]) -> Iterator[None]:
    """Within it the generators of the CPU, these devices and the current one may be used up."""
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None:
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        indices = {d.index for d in devices if d.index is not None and d.type == current.type}
        indices.add(torch.accelerator.current_device_index())
        with torch.random.fork_rng(devices=sorted(indices), device_type=current.type):
            yield
