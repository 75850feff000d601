"""A VAE: its decoder and encoder, with static shapes, so that `decode`, `encode` and tiling run
compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rocm_passes.diffusers_pipeline import hooks
from rocm_passes.diffusers_pipeline.compiled_before import compiled_method, unwrapped
from rocm_passes.diffusers_pipeline.compiling import compile_in_place, obstacle
from rocm_passes.diffusers_pipeline.probe import probe_decode
from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.diffusers_pipeline.settings import Settings


def compile_vae(
    vae: nn.Module,
    *,
    name: str = "vae",
    report: Report | None = None,
    options: Mapping[str, Any] | None = None,
    vae_dtype: str | None = None,
) -> Report:
    """Compile `vae.decoder` and `vae.encoder` in place. options: those of the backend.

    vae_dtype: "bf16" or "fp16": compute the decoder's float32 3-D convolutions in it.
    Raises OptionError on wrong options.
    """
    report = report if report is not None else Report()
    settings = Settings.checked(options=options, vae_dtype=vae_dtype)
    compile_vae_parts(vae, name=name, report=report, settings=settings)
    return report


def compile_vae_parts(
    component: nn.Module, *, name: str, report: Report, settings: Settings
) -> None:
    vae = unwrapped(component)
    replaced = _replace_numpy_booleans(vae)
    if replaced:
        report.add(
            name,
            "changed",
            f"numpy booleans became Python ones, which Dynamo can read: {', '.join(replaced)}",
        )
    for part, method in (("decoder", "decode"), ("encoder", "encode")):
        module = getattr(vae, part, None)
        if isinstance(module, nn.Module):
            _compile_part(vae, part, method, module, f"{name}.{part}", report, settings)


def _compile_part(
    vae: nn.Module,
    part: str,
    method: str,
    module: nn.Module,
    name: str,
    report: Report,
    settings: Settings,
) -> None:
    compiled = compiled_method(vae, method)
    reason = f"compiled already, within {compiled}()" if compiled else obstacle(module)
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    options = settings.of_vae(part)
    details = ["static shapes", hooks.note(vae)]
    if settings.graphs:
        details.append("without CUDA graphs, which would overwrite frames that are kept")
    if settings.vae_dtype is not None and part == "decoder":
        useless = _why_dtype_is_useless(module)
        if useless is None:
            details.append(probe_decode(vae, settings.vae_dtype))
        else:
            del options["conv_dtype"]
            details.append(f"vae_dtype changes nothing: {useless}")
    compile_in_place(module, options=options, dynamic=False)
    report.add_compiled(name, "; ".join(d for d in details if d), 1.0, [module])


def compile_resampler(module: nn.Module, *, name: str, report: Report, settings: Settings) -> None:
    """A module of 3-D convolutions that runs once a call: whole, with static shapes, as a
    decoder.
    """
    reason = obstacle(module)
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    compile_in_place(module, options=settings.of_vae("encoder"), dynamic=False)
    details = ["whole, static shapes", hooks.note(module)]
    report.add_compiled(name, "; ".join(d for d in details if d), 1.0, [module])


def _why_dtype_is_useless(decoder: nn.Module) -> str | None:
    kernels = [m.weight for m in decoder.modules() if isinstance(m, nn.Conv3d)]
    if not kernels:
        return "the decoder has no 3-D convolutions"
    if all(k.dtype is not torch.float32 for k in kernels):
        return f"the decoder's convolutions are in {str(kernels[0].dtype).removeprefix('torch.')}"
    return None


def _replace_numpy_booleans(module: nn.Module) -> list[str]:
    """HunyuanVideo 1.5's decoder keeps numpy's booleans, at each of which Dynamo breaks the
    graph.
    """
    replaced: dict[str, None] = {}
    for attribute, value, owner in _attributes(module):
        if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
            setattr(owner, attribute, bool(value))
            replaced[attribute] = None
    return list(replaced)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any, nn.Module]]:
    for owner in module.modules():
        for attribute, value in list(vars(owner).items()):
            yield attribute, value, owner
