"""GroupNorm with what follows it, written behind other frames where it stands behind them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.group_norm import GROUP_NORM, GroupNorm
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target


def run(call: GroupNorm) -> Tensor:
    from rocm_passes.kernels.triton.convolution.frames import joined
    from rocm_passes.kernels.triton.norms.group_norm_launch import group_norm

    call = replace(call, x=settled(call.x))
    return joined(
        call.front, call.repeat_first, call.x, call.out_dtype, lambda out: group_norm(call, out)
    )


def note(call: GroupNorm, target: Target) -> str | None:
    return rounds_once(call.rounds_between)


def rounds_once(rounds_between: bool) -> str | None:
    return (
        "the result is rounded once, where the graph also rounds before SiLU"
        if rounds_between
        else None
    )


TRITON = register(GROUP_NORM, "norms.group_norm_launch", run, first=True, note=note)
