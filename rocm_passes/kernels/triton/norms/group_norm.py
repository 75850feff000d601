"""GroupNorm with what follows it, written behind other frames where it stands behind them."""

from __future__ import annotations

import math

from torch import Tensor

from rocm_passes.ops.group_norm import GROUP_NORM, GroupNorm
from rocm_passes.ops.operator import Lowering, Verdict, measured
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target, needs_import, needs_triton


def run(call: GroupNorm) -> Tensor:
    from rocm_passes.kernels.triton.convolution.frames import joined
    from rocm_passes.kernels.triton.norms.group_norm_launch import group_norm

    x = settled(call.x)

    def compute(out: Tensor | None) -> Tensor:
        return group_norm(
            x,
            call.groups,
            call.weight,
            call.bias,
            call.eps,
            silu=call.silu,
            multiplier=call.multiplier,
            addend=call.addend,
            out_dtype=call.out_dtype,
            x_bias=call.x_bias,
            pixel_index=call.pixel_index,
            out=out,
        )

    return joined(call.front, call.repeat_first, x, call.out_dtype, compute)


def note(call: GroupNorm, target: Target) -> str | None:
    return rounds_once(call.rounds_between)


def rounds_once(rounds_between: bool) -> str | None:
    return "the result is rounded once, where the graph also rounds before SiLU" if rounds_between else None


def pays(call: GroupNorm, target: Target) -> Verdict:
    return pays_for(call.x, target)


def pays_for(x: Tensor, target: Target) -> Verdict:
    # Between two convolutions on an H200: 512 x 128 x 128 took 0.76 of Inductor's time contiguous and 0.87
    # channels-last, 128 x 1024 x 1024 0.58 and 0.60.
    least = 2**22
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    size = math.prod(x.shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < least:
        return Verdict(False, f"below {least} elements Inductor's own code is about as fast (H200)")
    return Verdict(
        True, f"from {least} elements on the kernel needs fewer passes over memory ({measured(target)})"
    )


TRITON = GROUP_NORM.register(
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.group_norm_launch")),
        note=note,
        pays=pays,
        run=run,
        launches=True,
    ),
    first=True,
)
