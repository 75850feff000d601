"""The rotation of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.rotary import ROTARY, Rotary, refuses


def run(call: Rotary) -> Tensor:
    from rocm_passes.kernels.triton.rotary.rotary_launch import Rotation, rotary

    rotation = Rotation(call.interleaved, call.width, call.conjugate, call.seq_start)
    out = torch.empty(call.x.shape, dtype=call.out_dtype, device=call.x.device)
    return rotary(call.x, call.cos, call.sin, rotation, out=out)


TRITON = register(ROTARY, "rotary.rotary_launch", run, refuses=refuses)
