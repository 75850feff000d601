"""Two ranks whose measurements and files differ compile the same graph."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from rocm_passes.ops.operator import Lowering
from rocm_passes.policy import bounds
from rocm_passes.target import Target
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning import tuning
from rocm_passes.tuning.store import Measured, Store
from tests.distributed.checks import Findings, check, said
from tests.rewriting import rewrite

MI300 = Target("amd", "gfx942", "AMD Instinct MI300X", "2.11.0+rocm7", "3.6")
MI325 = replace(MI300, name="AMD Instinct MI325X")


def compiled(channels: int, measure: Any, path: Path, target: Target = MI300) -> Findings:
    """The entry of one convolution, compiled as on the target, and its graph's notes."""

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, weight)

    small = mock.patch.object(bounds, "WORTH_MEASURING", replace(bounds.WORTH_MEASURING, value=0))
    faked = mock.patch.object(Target, "of_inputs", staticmethod(lambda _: target))
    with small, faked, mock.patch.object(measuring, "measure", measure):
        found = rewrite(
            convolved,
            torch.randn(1, channels, 4, 5, 5),
            torch.randn(2, channels, 3, 3, 3),
            options={"select": "auto", "choices": str(path), "tune_seconds": 20.0},
        )
    return {"site": said(found.only()), "notes": found.ledgers[0].notes}


class Clock:
    """On this rank, one lowering is the fastest."""

    def __init__(self, best: str) -> None:
        self.best = best
        self.asked = 0

    def __call__(self, lowerings: Sequence[Lowering[Any]], call: Any, watch: Any) -> Measured:
        self.asked += 1
        names = [low.name for low in lowerings]
        return Measured({n: 1.0 if n == self.best else 5.0 for n in names}, dict.fromkeys(names, 1))


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="rocm-passes-rank"))


def best_here() -> str:
    return ("taps", "unfold")[dist.get_rank()]


@check
def each_measures_otherwise() -> Findings:
    clock = Clock(best_here())
    return {**compiled(2, clock, _folder() / "c.json"), "asked": clock.asked}


@check
def a_damaged_file_on_rank_1() -> Findings:
    path = _folder() / "c.json"
    if dist.get_rank() == 1:
        path.write_text("{")
    clock = Clock(best_here())
    return {**compiled(3, clock, path), "asked": clock.asked}


@check
def different_files() -> Findings:
    """Both know the call, each its own times."""
    path, clock = _folder() / "c.json", Clock(best_here())
    key = "conv3d float32 x 1x4x4x5x5 w 2x4x3x3x3"
    key += " tf32" if torch.backends.cudnn.allow_tf32 else ""
    ms = {"direct": 5.0, "taps": 5.0, "taps_tiled": 5.0, "unfold": 5.0, "tiled": 5.0}
    Store(path).add(
        tuning.machine(MI300), key, Measured(ms | {best_here(): 1.0}, dict.fromkeys(ms, 1))
    )
    return {**compiled(4, clock, path), "asked": clock.asked}


@check
def rank_1_alone() -> Findings:
    """Rank 0 never compiles this one."""
    clock = Clock("unfold")
    if dist.get_rank() == 0:
        return {"asked": 0}
    return {**compiled(5, clock, _folder() / "c.json"), "asked": clock.asked}


@check
def different_cards() -> Findings:
    clock = Clock("taps")
    target = MI325 if dist.get_rank() else MI300
    return {**compiled(6, clock, _folder() / "c.json", target), "asked": clock.asked}
