"""Use this backend in servers that call torch.compile without a `backend` argument.

sglang's diffusion runtime and vLLM-Omni compile their transformers themselves, and neither has an
option for the backend. Both reach `torch.compile` or `torch.nn.Module.compile`. Inside
`default_backend()` these use this backend where the caller names none:

    with default_backend():
        server.start()

torch's two functions are replaced for that time, and restored afterwards. The package itself
replaces nothing: this file is a recipe. A server that starts worker processes needs the block in
each: put it where the worker's own code begins, or set it up in `sitecustomize.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

BACKEND = "rocm_diffusion"


@contextmanager
def default_backend(options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within it torch.compile and Module.compile take this backend where the call names none.

    options: for the backend, where the call gives none. torch takes either a mode or options: a
    mode that the call gives moves into the options.
    """

    def with_backend(compile_function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compile_function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("backend") in (None, "inductor"):
                kwargs["backend"] = BACKEND
                kwargs |= _mode_as_option(kwargs, options or {})
            return compile_function(*args, **kwargs)

        return call

    module = torch.nn.Module
    with (
        mock.patch.object(torch, "compile", with_backend(torch.compile)),
        mock.patch.object(module, "compile", with_backend(module.compile)),
    ):
        yield


def _mode_as_option(kwargs: dict[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    given = {**ours, **(kwargs.get("options") or {})}
    mode = kwargs.get("mode")
    if mode and given:
        given["mode"] = mode
        mode = None
    return {"mode": mode, "options": given or None}
