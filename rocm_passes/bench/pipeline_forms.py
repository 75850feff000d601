"""The ways to compile a pipeline that are compared: eager, plain Inductor's, and this package's.

eager                       nothing is compiled
blocks                      pipe.transformer.compile_repeated_blocks(), VAE eager: what
                            diffusers' documentation advises
blocks+vae                  the same and the VAE's decoder, all with static shapes
whole+vae                   the denoiser as one graph and the VAE's decoder, static shapes
whole+graphs                the same, with mode="reduce-overhead" for the denoiser
ours                        rocm_passes.compile_pipeline(pipe)
ours+whole, ours+blocks     the same with how="whole", how="blocks"
ours+graphs, ours+plain     the same with mode="reduce-overhead", mode="default"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

FORMS = (
    "eager", "blocks", "blocks+vae", "whole+vae", "whole+graphs",
    "ours", "ours+whole", "ours+blocks", "ours+graphs", "ours+plain",
)  # fmt: skip
#: Graphs that a video VAE may have in static shapes (as
#: diffusers_pipeline.compiling.RECOMPILE_LIMIT).
GRAPHS_OF_A_VAE = 64


def is_ours(form: str) -> bool:
    return form.partition("+")[0] == "ours"


def uses_graphs(form: str) -> bool:
    return form.endswith("+graphs")


def may_use_graphs(form: str) -> bool:
    """By itself compile_pipeline decides."""
    return uses_graphs(form) or form == "ours"


def compile_as(form: str, pipe: Any, denoiser: nn.Module, backend: str = "inductor") -> str:
    """Compile in place. backend: of the plain forms. Returns what compile_pipeline reports, or
    nothing.
    """
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
    if is_ours(form):
        return _compile_ours(form, pipe)
    if form != "eager":
        _compile_plain(form, pipe, denoiser, backend)
    return ""


def _compile_ours(form: str, pipe: Any) -> str:
    from rocm_passes import compile_pipeline

    _, _, how = form.partition("+")
    modes = {"graphs": "reduce-overhead", "plain": "default"}
    if how in modes:
        return str(compile_pipeline(pipe, mode=modes[how]))
    return str(compile_pipeline(pipe, how=how or "auto"))


def _compile_plain(form: str, pipe: Any, denoiser: nn.Module, backend: str) -> None:
    if form == "blocks":
        denoiser.compile_repeated_blocks(backend=backend)  # type: ignore[operator]
        return
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_VAE
    pipe.vae.decoder.compile(dynamic=False, backend=backend)
    if form == "blocks+vae":
        denoiser.compile_repeated_blocks(dynamic=False, backend=backend)  # type: ignore[operator]
    elif form == "whole+vae":
        denoiser.compile(dynamic=False, backend=backend)
    else:
        mode = "reduce-overhead" if backend == "inductor" else None
        denoiser.compile(dynamic=False, backend=backend, mode=mode)
        denoiser._compiled_call_impl = _with_own_outputs(denoiser._compiled_call_impl)


def _with_own_outputs(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Copies the results of CUDA graphs, which the next call overwrites, as
    compile_pipeline does.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(torch.Tensor, torch.Tensor.clone, compiled(*args, **kwargs))

    return call
