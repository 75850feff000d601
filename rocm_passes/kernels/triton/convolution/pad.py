"""Padding in one pass, after nearest upsampling or without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rocm_passes.ops.operator import Lowering, Verdict, measured
from rocm_passes.ops.pad import PAD, Pad
from rocm_passes.target import Target, needs_import, needs_triton

#: Below this size Inductor is left to fuse the padding with what makes x.
LEAST = 2**22


def run(call: Pad) -> Tensor:
    from rocm_passes.kernels.triton.convolution.pad_launch import pad

    return pad(
        call.x,
        call.padding,
        call.mode,
        repeats=call.repeats,
        skipped=call.skipped,
        channels_last=call.channels_last,
    )


def refuses(call: Pad, target: Target) -> str | None:
    x = call.x
    return None if x.itemsize <= 8 else f"x is {x.dtype}: its elements have {x.itemsize} bytes"


def pays(call: Pad, target: Target) -> Verdict:
    verdict = pays_for(call.shape, call.channels_last, target)
    if verdict.pays and all(r == 1 for r in call.repeats):
        return Verdict(
            False, f"without upsampling Inductor's copy is as fast, and may be fused ({measured(target)})"
        )
    return verdict


def pays_for(shape: Sequence[Any], channels_last: bool, target: Target) -> Verdict:
    """The rule for a padded result of this shape, whatever is written into it."""
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor fuses the padding with what makes its input")
    if not channels_last:
        return Verdict(False, "the convolution's input is contiguous: Inductor's copy needs no turning")
    size = math.prod(shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < LEAST:
        return Verdict(False, f"below {LEAST} elements it is left to Inductor to fuse (not measured)")
    # python -m rocm_passes.bench.pads (docs/tuning.md): HunyuanVideo's upsamplers 2.55 -> 0.59 ms and less.
    return Verdict(True, f"one pass, where Inductor crosses memory in the wrong order ({measured(target)})")


TRITON = PAD.register(
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.convolution.pad_launch")),
        refuses=refuses,
        pays=pays,
        run=run,
        launches=True,
    )
)
