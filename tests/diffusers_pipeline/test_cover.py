"""Whole, by declared blocks, or by a cover: which modules, and what share of the weights
they hold.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rocm_passes import compile_pipeline
from rocm_passes.diffusers_pipeline.cover import cover, declared_blocks, share
from rocm_passes.diffusers_pipeline.report import percent
from tests.diffusers_pipeline.doubles import Graphs
from tests.diffusers_pipeline.models import classes, flux, sdxl_unet, unet_inputs


def weights(model: nn.Module, words: tuple[str, ...]) -> float:
    """The share of matrices and kernels whose path has one of the words."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.ndim >= 2}
    return sum(s for name, s in sizes.items() if any(w in name for w in words)) / sum(
        sizes.values()
    )


def test_sdxl_s_declared_blocks_hold_a_part_of_its_weights() -> None:
    model = sdxl_unet()
    assert classes(declared_blocks(model)) == {"BasicTransformerBlock"}
    assert share(model, declared_blocks(model)) == pytest.approx(
        weights(model, ("transformer_blocks",))
    )
    assert share(model, declared_blocks(model)) < 0.7
    assert share(model, [model]) == 1


def test_a_cover_adds_resnets_and_samplers() -> None:
    model = sdxl_unet()
    units = cover(model)
    assert classes(units) == {
        "BasicTransformerBlock",
        "ResnetBlock2D",
        "Downsample2D",
        "Upsample2D",
    }
    words = ("transformer_blocks", "resnets", "downsamplers", "upsamplers")
    assert share(model, units) == pytest.approx(weights(model, words))
    inside = {id(m) for u in units for m in u.modules() if m is not u}
    assert not inside & {id(u) for u in units}


def test_a_unet_is_compiled_whole_and_the_report_says_why(graphs: Graphs) -> None:
    model = sdxl_unet()
    held = percent(share(model, declared_blocks(model)))
    blocks = len(declared_blocks(model))
    report = compile_pipeline(model)
    assert report.compiled == ["UNet2DConditionModel"]
    detail = report.parts[0].detail
    assert detail.startswith("whole: ")
    for part in (f"{blocks} blocks (BasicTransformerBlock)", f"only {held}", "how='blocks'"):
        assert part in detail
    assert report.shares == {"UNet2DConditionModel": 1.0}
    assert model._compiled_call_impl is not None


def test_a_unet_by_its_cover_computes_the_same(graphs: Graphs) -> None:
    model = sdxl_unet()
    with torch.no_grad():
        expected = model(**unet_inputs())[0]
        report = compile_pipeline(model, how="blocks")
        assert torch.equal(model(**unet_inputs())[0], expected)
    assert graphs.count > 4
    assert model._compiled_call_impl is None
    assert report.shares["UNet2DConditionModel"] == share(model, cover(model))
    assert f"{percent(share(model, cover(model)))} of its weights" in str(report)


class Wide(nn.Module):
    """A transformer whose blocks hold nearly all of its weights."""

    _repeated_blocks = ("Block",)

    def __init__(self, outside: int) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 16)
        self.outside = nn.Linear(16, outside, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 90)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("outside", "whole"), [(20, False), (21, True)])
def test_blocks_with_nine_tenths_of_the_weights_are_enough(
    graphs: Graphs, outside: int, whole: bool
) -> None:
    """180 columns in blocks against 20 or 21 outside; the embedding is no work, and not counted."""
    model = Wide(outside)
    report = compile_pipeline(model)
    assert (model._compiled_call_impl is not None) == whole
    assert report.shares["Wide"] == pytest.approx(1.0 if whole else 0.9)


def test_undeclared_blocks_are_found() -> None:
    """Lists of alike members; members that hold lists of blocks themselves are opened where they
    differ.
    """

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Block() for _ in range(2))

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Experts(), Experts()])
            self.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    model = nn.Module()
    model.stages = nn.ModuleList([Stage(), Block()])
    model.levels = nn.ModuleList([nn.ModuleList([Block(), nn.Linear(2, 2)])])
    assert [type(m).__name__ for m in cover(model)] == ["Experts", "Experts", "Block", "Block"]


def test_without_blocks_it_is_the_whole(graphs: Graphs) -> None:
    report = compile_pipeline(nn.Linear(2, 2), how="blocks")
    assert report.compiled == ["Linear"]
    assert "no repeated block" in report.parts[0].detail


def test_percentages() -> None:
    assert [percent(s) for s in (0.2925, 0.9955, 1.0, 0.0)] == ["29 %", "99.5 %", "100 %", "0 %"]


def test_how_whole_takes_flux_whole(graphs: Graphs) -> None:
    model = flux()
    assert compile_pipeline(model, how="whole").parts[0].detail == "whole"
    assert model.transformer_blocks[0]._compiled_call_impl is None
