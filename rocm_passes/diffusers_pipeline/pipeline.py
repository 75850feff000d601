"""compile_pipeline: which components of a pipeline to compile, and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from rocm_passes.diffusers_pipeline import artifacts
from rocm_passes.diffusers_pipeline import warm as warming
from rocm_passes.diffusers_pipeline.compiled_before import unwrapped
from rocm_passes.diffusers_pipeline.components import (
    DENOISER,
    OTHER,
    RESAMPLER,
    VAE,
    Role,
    is_vae,
    role,
)
from rocm_passes.diffusers_pipeline.denoiser import by_rule, compile_denoiser
from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.diffusers_pipeline.settings import HowToCompile, Settings
from rocm_passes.diffusers_pipeline.tuned import compile_tuned
from rocm_passes.diffusers_pipeline.vae import compile_resampler, compile_vae_parts
from rocm_passes.errors import OptionError, nearest


def compile_pipeline(
    pipe: Any,
    *,
    transformer: bool = True,
    vae: bool = True,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    cache_artifacts: str | os.PathLike[str] | None = None,
    warm: warming.Sizes | None = None,
    **settings: Unpack[HowToCompile],
) -> Report:
    """Compile a diffusers pipeline, or a bare denoiser or VAE, in place. Without `warm` nothing
    runs yet.

    transformer, vae: whether to compile denoisers, and VAEs with latent upsamplers.
    include, exclude: names of components to compile or to leave, whatever they are.
    how: denoisers "whole"; by "blocks" (the declared ones, ResNets and samplers too); "auto": by
    the declared blocks where these hold 90 % of its weights, else whole.
    dynamic: as of torch.compile, for denoisers; shapes of VAEs are static.
    mode: an Inductor mode; without one, UNets on NVIDIA GPUs get "reduce-overhead" (CUDA graphs),
    and "default" turns that off. options: those of the backend.
    vae_dtype: "bf16" or "fp16": a float32 VAE decodes with 3-D convolutions in it; encoding stays
    float32. The report gives the PSNR of a probe decode, which runs now.
    cache_artifacts: file to load compiled code from; `report.save_cache_artifacts()` writes it.
    warm: arguments of a call of the pipeline (or a list), e.g. {"height": 1024, "width": 1024}: run
    it now, with two steps unless given, and save the artifacts.
    tune: arguments like those of `warm`: run the pipeline now, twice for each way to compile its
    denoisers (whole, by blocks, and with CUDA graphs where the host is the slower one), and take
    the fastest. The report has the times, and the share of the time in eager that is compiled.

    Offloading hooks, LoRA adapters and attention processors stay. The report has a line for each
    component. Raises TypeError on what is neither a pipeline nor a module, OptionError on a wrong
    argument or option.
    """
    checked = Settings.checked(**settings)
    runs, tries = warming.calls(pipe, warm), warming.calls(pipe, checked.tune, "tune")
    trial = (lambda: warming.once(pipe, tries)) if tries else None
    components = _components(pipe)
    wanted = Wanted.checked(components, transformer, vae, include, exclude)
    report = Report(title=f"rocm-passes: {type(pipe).__name__}")
    if cache_artifacts is not None:
        artifacts.load(cache_artifacts, report)
    kind = None if isinstance(pipe, nn.Module) else type(pipe)
    seen: dict[int, str] = {}
    for name, component in components.items():
        first = seen.setdefault(id(unwrapped(component)), name)
        if first != name:
            report.add(name, "skipped", f"it is the same module as {first}")
        elif (reason := wanted.leaves(name)) is not None:
            report.add(name, "skipped", reason)
        else:
            found = _role(name, component, kind)
            _compile(name, component, found, wanted, report, checked, trial)
    for arguments in runs:
        warming.run(pipe, arguments, report)
    if runs and report.artifacts_path is not None:
        artifacts.save(report)
    return report


@dataclass(frozen=True)
class Wanted:
    """Which components the user asked for."""

    transformer: bool
    vae: bool
    include: frozenset[str]
    exclude: frozenset[str]

    @classmethod
    def checked(
        cls,
        components: Mapping[str, nn.Module],
        transformer: bool,
        vae: bool,
        include: Iterable[str],
        exclude: Iterable[str],
    ) -> Wanted:
        for argument, names in (("include", include), ("exclude", exclude)):
            if isinstance(names, str):
                raise OptionError.value(argument, "a list of component names", names)
            for name in names:
                if name not in components:
                    expected = f"modules among {', '.join(components)}"
                    raise OptionError.value(argument, expected, name, nearest(name, components))
        both = sorted(set(include) & set(exclude))
        if both:
            raise OptionError.value("exclude", "no name that include has", both[0])
        return cls(transformer, vae, frozenset(include), frozenset(exclude))

    def leaves(self, name: str) -> str | None:
        return "exclude has it" if name in self.exclude else None

    def refuses(self, name: str, found: Role) -> str | None:
        if name in self.include:
            return None
        if found.kind == OTHER:
            return found.reason
        if found.kind == DENOISER:
            return None if self.transformer else "transformer=False"
        return None if self.vae else "vae=False"


def _components(pipe: Any) -> dict[str, nn.Module]:
    if isinstance(pipe, nn.Module):
        return {type(unwrapped(pipe)).__name__: pipe}
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(
            f"expected a diffusers pipeline or a module of one, found {type(pipe).__name__}"
        )
    return {name: c for name, c in components.items() if isinstance(c, nn.Module)}


def _role(name: str, component: nn.Module, pipeline: type | None) -> Role:
    """A bare module that is no VAE is what the user wants to be compiled as a denoiser."""
    if pipeline is None:
        return Role(VAE if is_vae(unwrapped(component)) else DENOISER)
    return role(name, component, pipeline)


def _compile(
    name: str,
    component: nn.Module,
    found: Role,
    wanted: Wanted,
    report: Report,
    settings: Settings,
    trial: Callable[[], object] | None,
) -> None:
    refusal = wanted.refuses(name, found)
    if refusal is not None:
        report.add(name, "skipped", refusal)
    elif found.kind == VAE:
        compile_vae_parts(component, name=name, report=report, settings=settings)
    elif found.kind == RESAMPLER:
        compile_resampler(component, name=name, report=report, settings=settings)
    elif trial is not None:
        compile_tuned(component, name=name, report=report, settings=settings, run=trial)
    else:
        chosen = by_rule(component, settings)
        compile_denoiser(component, name=name, report=report, settings=chosen)
