"""Which modules of a denoiser to compile one by one, and what share of its work they hold.

    UNet2DConditionModel
      conv_in                                eager: a single layer
      down_blocks: [DownBlock2D, CrossAttnDownBlock2D, ...]     stages: their members are not alike
        resnets:    [ResnetBlock2D, ...]                        units
        attentions: [Transformer2DModel, ...]                   stages: they hold declared blocks
          transformer_blocks: [BasicTransformerBlock, ...]      units, declared by the class
        downsamplers: [Downsample2D]                            unit

The share is counted in weights: elements of the matrices and kernels of linear layers and
convolutions. That is exact where each of them is applied to the same number of positions, and an
estimate elsewhere (SDXL's transformer blocks: 85 % of the weights, 75 % of the FLOPs at 1024 x
1024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from rocm_passes.diffusers_pipeline.compiled_before import unwrapped


def declared(model: nn.Module) -> tuple[str, ...]:
    """Class names of the blocks that the model's class declares to be repeated (diffusers)."""
    return tuple(getattr(model, "_repeated_blocks", None) or ())


def declared_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules of the declared classes, as they stand in the model."""
    return list(_outermost(model, declared(model)))


def is_of(module: nn.Module, classes: Sequence[str]) -> bool:
    """Is the module of one of the classes? FSDP2 puts a class of its own before a module's."""
    return any(c.__name__ in classes for c in type(unwrapped(module)).__mro__)


def _outermost(module: nn.Module, classes: Sequence[str]) -> Iterator[nn.Module]:
    for child in unwrapped(module).children():
        if is_of(child, classes):
            yield child
        else:
            yield from _outermost(child, classes)


def cover(model: nn.Module) -> list[nn.Module]:
    """Declared blocks and, of the rest, the innermost members of module lists that are more than
    one layer.
    """
    return list(_units(model, declared(model)))


def _units(module: nn.Module, classes: Sequence[str]) -> Iterator[nn.Module]:
    members = isinstance(module, nn.ModuleList)
    alike = members and len({type(unwrapped(m)) for m in module.children()}) == 1
    for child in unwrapped(module).children():
        inner = unwrapped(child)
        is_member = members and not _is_container(inner)
        if is_of(inner, classes) or (is_member and not _is_stage(inner, classes, alike)):
            yield child
        else:
            yield from _units(child, classes)


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _is_container(module: nn.Module) -> bool:
    """What cannot be called, or is not worth a graph: lists and single layers."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) or _is_layer(module)


def _is_stage(module: nn.Module, classes: Sequence[str], alike: bool) -> bool:
    """Whether a list's member is itself made of units: it holds declared blocks, or lists of
    blocks.
    """
    inside = [m for m in module.modules() if m is not module]
    if any(is_of(m, classes) for m in inside):
        return True
    lists = (m for m in inside if isinstance(m, nn.ModuleList))
    return not alike and any(not _is_layer(unwrapped(m)) for each in lists for m in each.children())


def share(model: nn.Module, modules: Iterable[nn.Module]) -> float:
    """The share of the model's weights that the modules hold, 0 to 1; 1 for a model without any."""
    held = {id(w): w.numel() for m in modules for w in _weights(m)}
    total = {id(w): w.numel() for w in _weights(model)}
    return sum(held.values()) / sum(total.values()) if total else 1.0


def _weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices and kernels; tables of embeddings are looked up, not multiplied with."""
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            yield from (p for p in module.parameters(recurse=False) if p.ndim >= 2)
