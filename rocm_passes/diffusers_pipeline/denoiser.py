"""A transformer or UNet: whole, by the blocks that its class declares, or by a cover of blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from rocm_passes.diffusers_pipeline import compiled_before, hooks
from rocm_passes.diffusers_pipeline.compiling import compile_in_place, obstacle
from rocm_passes.diffusers_pipeline.cover import cover, declared, declared_blocks, share
from rocm_passes.diffusers_pipeline.report import Report, percent
from rocm_passes.diffusers_pipeline.settings import Settings
from rocm_passes.policy.bounds import NEARLY_ALL
from rocm_passes.target import Target


@dataclass(frozen=True)
class Plan:
    """modules to compile one by one, or None for the whole; why: for the report."""

    modules: list[nn.Module] | None
    why: str = ""


def compile_denoiser(
    component: nn.Module, *, name: str, report: Report, settings: Settings | None = None
) -> None:
    """Compile in place and report. component: any module that runs at each step, called as a
    module.
    """
    settings = settings or Settings()
    reason = compiled_before.compiled_before(component) or compiled_before.untraceable(component)
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    chosen = plan(component, settings)
    if chosen.modules is None:
        _compile_whole(component, name, report, settings, chosen.why)
    else:
        _compile_each(component, chosen.modules, name, report, settings)


def by_rule(component: nn.Module, settings: Settings) -> Settings:
    """With CUDA graphs where nothing was said of them and they pay: in a UNet on NVIDIA.

    Its forward is bound by the host: SDXL's took 390 ms without and 295 with them (H200,
    docs/measured/pipelines.md). On AMD `tune` decides, since HIP graphs were not measured.
    """
    if settings.says_of_graphs() or settings.how != "auto" or settings.dynamic is True:
        return settings
    is_unet = any(isinstance(m, nn.GroupNorm) for m in component.modules())
    if not is_unet or component.training or _vendor(component) != "nvidia":
        return settings
    if hooks.moves_weights(component):
        return settings
    whole = plan(component, settings)
    return settings.with_graphs() if whole.modules is None else settings


def _vendor(model: nn.Module) -> str:
    first = next(model.parameters(), None)
    return "" if first is None else Target.of_device(first.device).vendor


def plan(model: nn.Module, settings: Settings) -> Plan:
    """settings.how decides; for "auto": blocks where they hold nearly all of the weights, else the
    whole.

    A graph of the whole would break at hooks and at modules that are compiled already: there blocks
    it is.
    CUDA graphs want the whole: the results of each graph are copied.
    """
    if settings.how == "whole":
        return Plan(None)
    if settings.how == "blocks":
        units = cover(model)
        return Plan(units) if units else Plan(None, "no repeated block was found")
    blocks = declared_blocks(model)
    in_pieces = hooks.any_below(model) or compiled_before.compiled_inside(model) > 0
    if settings.graphs and not settings.graphs_by_rule and not in_pieces:
        return Plan(None, "one CUDA graph rather than one a block")
    held = share(model, blocks)
    if blocks and held >= NEARLY_ALL.value:
        return Plan(blocks)
    if in_pieces:
        return Plan(cover(model) or None)
    if not blocks:
        return Plan(None)
    return Plan(
        None,
        f"its {len(blocks)} blocks ({', '.join(declared(model))}) hold only {percent(held)} of its "
        "weights; "
        "its first call compiles for longer than with how='blocks'",
    )


def _compile_whole(
    model: nn.Module, name: str, report: Report, settings: Settings, why: str
) -> None:
    reason = obstacle(model)
    inside = compiled_before.compiled_inside(model)
    if reason is None and inside:
        reason = f"{inside} of its modules are compiled already; how='blocks' compiles the others"
    if reason is not None:
        report.add(name, "skipped", reason)
        return
    _build_rope_tables(model, name, report)
    compile_in_place(
        model, options=settings.options, dynamic=settings.dynamic, graphs=settings.graphs
    )
    details = ["whole" + (f": {why}" if why else ""), hooks.note(model)]
    if settings.graphs_by_rule:
        details.append("CUDA graphs replay its launches; mode='default' turns them off")
    if hooks.splits_tokens(model):
        details.append(hooks.CONTEXT_PARALLEL)
    report.add_compiled(name, "; ".join(d for d in details if d), 1.0, [model])


def _compile_each(
    model: nn.Module, modules: list[nn.Module], name: str, report: Report, settings: Settings
) -> None:
    reasons: Counter[str] = Counter()
    done: list[nn.Module] = []
    for module in modules:
        reason = obstacle(module)
        if reason is None and (inside := compiled_before.compiled_inside(module)):
            reason = f"{inside} modules within are compiled already"
        if reason is not None:
            reasons[reason] += 1
            continue
        compile_in_place(
            module, options=settings.options, dynamic=settings.dynamic, graphs=settings.graphs
        )
        done.append(module)
    if done:
        classes = ", ".join(dict.fromkeys(type(m).__name__ for m in done))
        details = [f"{len(done)} blocks one by one ({classes}); alike blocks share a graph"]
        details += [n for n in (hooks.note(model), hooks.note(done[0])) if n]
        report.add_compiled(name, "; ".join(dict.fromkeys(details)), share(model, done), done)
    for reason, count in reasons.items():
        report.add(name, "skipped", f"{count} of {len(modules)} blocks: {reason}")


def _build_rope_tables(model: nn.Module, name: str, report: Report) -> None:
    """Build Z-Image's rotary tables, which Dynamo could not trace at their first use."""
    embedder = getattr(model, "rope_embedder", None)
    if embedder is None or getattr(embedder, "freqs_cis", 0) is not None:
        return
    device = next(model.parameters()).device
    axes = len(getattr(embedder, "axes_dims", (0, 0, 0)))
    with torch.no_grad():
        embedder(torch.zeros(1, axes, dtype=torch.int32, device=device))
    report.add(name, "changed", "its rotary tables were built ahead of the first call")
