"""Compile without generating code: the rewritten post-grad graph is run as it is."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch._dynamo.utils import detect_fake_mode
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import _disable_current_modes

import rocm_passes.backend as backend
from tests import suites


@contextmanager
def without_codegen() -> Iterator[None]:
    """Within it our backend stops after Inductor's post-grad passes, ours among them.

    Inductor's compile of one graph is its default, and what our backend names where it wraps that.
    A compile that fails fails here, unless an option says otherwise: no fault hides.
    """
    stops = functools.partial(compile_fx.compile_fx, inner_compile=_post_grad_only)
    with (
        mock.patch.object(backend, "compile_fx", stops),
        mock.patch.object(backend, "compile_fx_inner", _post_grad_only),
        mock.patch.dict(os.environ, {"ROCM_PASSES_ON_COMPILE_ERROR": "raise"}),
    ):
        yield


def codegen_if_asked() -> AbstractContextManager[None]:
    """Code is generated under pytest's option --codegen, and not otherwise."""
    return nullcontext() if suites.codegen() else without_codegen()


def _post_grad_only(gm: torch.fx.GraphModule, example_inputs: Any, **how: Any) -> Any:
    # AOTAutograd's fake mode is active here, and Inductor turns it off before its passes:
    # they compute with real tensors, such as the indices of an upsampling.
    with _disable_current_modes(), V.set_fake_mode(detect_fake_mode(example_inputs)):
        compile_fx.view_to_reshape(gm)
        post_grad_passes(gm, is_inference=how.get("is_inference", False))
    gm.recompile()
    return make_boxed_func(gm.forward)
