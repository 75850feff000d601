"""Compile the parts of a diffusers pipeline that pay, each in the way that it must be, and say what was done.

    report = rocm_passes.pipelines.compile_pipeline(pipe)
    print(report)

What this knows, and `torch.compile(pipe.vae)` does not:
- `decode()` and tiling call `vae.decoder`, not `vae.forward`: a compiled VAE that is not called as a module
  runs in eager. So decoder and encoder are compiled, in place, and with them every way to reach them.
- A video VAE decodes chunk by chunk in a few shapes. With automatic dynamic shapes they run into Dynamo's
  recompile limit and fall back to eager; with static shapes Wan's decode settles on three graphs.
- A transformer's blocks are alike: compiled one by one they share one graph, and compile in seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rocm_passes.backend import rocm_diffusion

#: Components of a pipeline that denoise: each runs at every step.
DENOISERS = ("transformer", "transformer_2", "unet", "prior", "controlnet")
#: Graphs that a VAE's decoder or encoder may have: three a resolution, and as many for each size of a tile.
RECOMPILE_LIMIT = 64

Callable_ = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """One part of a pipeline. action: "compiled", "skipped" or "changed"; detail: how, or why not."""

    name: str
    action: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.action}: {self.detail}"


@dataclass
class Report:
    """What became of each part of a pipeline."""

    parts: list[Part] = field(default_factory=list)

    def add(self, name: str, action: str, detail: str) -> None:
        self.parts.append(Part(name, action, detail))

    def names(self, action: str) -> list[str]:
        return [p.name for p in self.parts if p.action == action]

    @property
    def compiled(self) -> list[str]:
        return self.names("compiled")

    @property
    def skipped(self) -> list[str]:
        return self.names("skipped")

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts)) or "there was nothing to compile"


def compile_pipeline(
    pipe: Any,
    *,
    transformer: bool = True,
    vae: bool = True,
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Compile a diffusers pipeline, or a bare transformer or VAE, in place; nothing runs until it is called.

    transformer, vae: which to compile. dynamic: as of torch.compile, for the transformer; the VAE's shapes
    are static. options: those of the backend. Offloading hooks, LoRA adapters and attention processors stay.
    Raises TypeError on what is neither a pipeline nor a module.
    """
    report = Report()
    if isinstance(pipe, nn.Module):
        _compile_bare(pipe, report, dynamic, options)
        return report
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"expected a diffusers pipeline or a module of one, found {type(pipe).__name__}")
    for name, component in components.items():
        if not isinstance(component, nn.Module):
            continue
        if name in DENOISERS:
            if transformer:
                compile_transformer(component, name=name, report=report, dynamic=dynamic, options=options)
            else:
                report.add(name, "skipped", "transformer=False")
        elif is_vae(component):
            if vae:
                compile_vae(component, name=name, report=report, options=options)
            else:
                report.add(name, "skipped", "vae=False")
        else:
            report.add(name, "skipped", "it runs once for a prompt, less than its compilation would take")
    return report


def is_vae(module: nn.Module) -> bool:
    return isinstance(getattr(module, "decoder", None), nn.Module) and callable(
        getattr(module, "decode", None)
    )


def _compile_bare(
    module: nn.Module, report: Report, dynamic: bool | None, options: Mapping[str, Any] | None
) -> None:
    name = type(module).__name__
    if is_vae(module):
        compile_vae(module, name=name, report=report, options=options)
    else:
        compile_transformer(module, name=name, report=report, dynamic=dynamic, options=options)


def compile_transformer(
    model: nn.Module,
    *,
    name: str = "transformer",
    report: Report | None = None,
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Compile each repeated block in place, or the whole model where its class names none."""
    report = report if report is not None else Report()
    classes = tuple(getattr(model, "_repeated_blocks", None) or ())
    blocks = [(path, m) for path, m in model.named_modules() if type(m).__name__ in classes]
    if not blocks:
        _warm_rope_tables(model, name, report)
        _compile_module(model, name, report, "whole", dynamic=dynamic, options=options)
        return report
    reasons: dict[str, int] = {}
    done = 0
    for _, block in blocks:
        reason = _obstacle(block)
        if reason is None:
            _compile(block, dynamic=dynamic, options=options)
            done += 1
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
    if done:
        report.add(
            name, "compiled", f"{done} blocks one by one ({', '.join(classes)}); alike blocks share a graph"
        )
    for reason, count in reasons.items():
        report.add(name, "skipped", f"{count} of {len(blocks)} blocks: {reason}")
    return report


def compile_vae(
    vae: nn.Module,
    *,
    name: str = "vae",
    report: Report | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Compile decoder and encoder with static shapes, so that `decode`, `encode` and tiling run compiled."""
    report = report if report is not None else Report()
    replaced = _replace_numpy_booleans(vae)
    if replaced:
        report.add(
            name,
            "changed",
            f"numpy booleans became Python ones, which Dynamo can read: {', '.join(replaced)}",
        )
    for part in ("decoder", "encoder"):
        module = getattr(vae, part, None)
        if isinstance(module, nn.Module):
            _compile_module(module, f"{name}.{part}", report, "static shapes", dynamic=False, options=options)
    return report


def _compile_module(
    module: nn.Module,
    name: str,
    report: Report,
    how: str,
    *,
    dynamic: bool | None,
    options: Mapping[str, Any] | None,
) -> None:
    reason = _obstacle(module)
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    _compile(module, dynamic=dynamic, options=options, limit=RECOMPILE_LIMIT if dynamic is False else None)
    report.add(name, "compiled", how)


def _compile(
    module: nn.Module, *, dynamic: bool | None, options: Mapping[str, Any] | None, limit: int | None = None
) -> None:
    """As `nn.Module.compile`, with room for `limit` graphs."""
    keywords: dict[str, Any] = {"backend": rocm_diffusion, "dynamic": dynamic}
    if options:
        keywords["options"] = dict(options)
    if limit is not None and "recompile_limit" in inspect.signature(torch.compile).parameters:
        keywords["recompile_limit"] = limit
        limit = None
    compiled = torch.compile(module._call_impl, **keywords)
    if limit is not None:
        compiled = _with_limit(compiled, limit)
    if "feat_cache" in inspect.signature(module.forward).parameters:
        compiled = _with_cached_frames(compiled)
    module._compiled_call_impl = compiled


def _with_limit(compiled: Callable_, limit: int) -> Callable_:
    """For releases where torch.compile takes no recompile limit: Dynamo's own, for the time of a call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=limit):
            return compiled(*args, **kwargs)

    return call


class CachedFrames:
    """A feature cache's tensor, as Wan's and Qwen-Image's code uses it, that can be compared with a string.

    Their cache holds tensors and the word "Rep", told apart by `==`. Dynamo of torch 2.11 breaks the graph where
    a tensor is compared with a string, which leaves the decoder in pieces.
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


def _with_cached_frames(compiled: Callable_) -> Callable_:
    """Hands over the feature cache with its tensors as CachedFrames, and puts back what the call leaves in it."""

    def call(*args: Any, feat_cache: list[Any] | None = None, **kwargs: Any) -> Any:
        if feat_cache is None:
            return compiled(*args, **kwargs)
        held = [CachedFrames(f) if isinstance(f, torch.Tensor) else f for f in feat_cache]
        result = compiled(*args, feat_cache=held, **kwargs)
        feat_cache[:] = [f.tensor if isinstance(f, CachedFrames) else f for f in held]
        return result

    return call


def _obstacle(module: nn.Module) -> str | None:
    """Why a module is left as it is, or None."""
    if module._compiled_call_impl is not None:
        return "it is compiled already"
    if any(_moves_weights(m) for m in module.modules()):
        return "sequential CPU offloading moves its weights within a call"
    return None


def _moves_weights(module: nn.Module) -> bool:
    """accelerate's hook of enable_sequential_cpu_offload, as against that of enable_model_cpu_offload."""
    hook = getattr(module, "_hf_hook", None)
    return type(hook).__name__ == "AlignDevicesHook" and bool(getattr(hook, "offload", False))


def _replace_numpy_booleans(module: nn.Module) -> list[str]:
    """HunyuanVideo 1.5's decoder keeps numpy's booleans, at each of which Dynamo breaks the graph."""
    replaced: dict[str, None] = {}
    for _, attribute, value, owner in _attributes(module):
        if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
            setattr(owner, attribute, bool(value))
            replaced[attribute] = None
    return list(replaced)


def _attributes(module: nn.Module) -> Iterator[tuple[str, str, Any, nn.Module]]:
    for path, owner in module.named_modules():
        for attribute, value in list(vars(owner).items()):
            yield path, attribute, value, owner


def _warm_rope_tables(model: nn.Module, name: str, report: Report) -> None:
    """Build Z-Image's rotary tables, which Dynamo could not trace at their first use."""
    embedder = getattr(model, "rope_embedder", None)
    if embedder is None or getattr(embedder, "freqs_cis", 0) is not None:
        return
    device = next(model.parameters()).device
    axes = len(getattr(embedder, "axes_dims", (0, 0, 0)))
    with torch.no_grad():
        embedder(torch.zeros(1, axes, dtype=torch.int32, device=device))
    report.add(name, "changed", "its rotary tables were built ahead of the first call")
