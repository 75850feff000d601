"""Padding in one pass, after nearest upsampling or without it."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.operator import same_bits
from rocm_passes.ops.pad import PAD, Pad
from rocm_passes.target import Target


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


TRITON = register(PAD, "convolution.pad_launch", run, refuses=refuses, other_bits=same_bits)
