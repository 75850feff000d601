"""The rotations of q and k in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.rotary_pair import ROTARY_PAIR, RotaryPair, refuses


def run(call: RotaryPair) -> Sequence[Tensor]:
    from rocm_passes.kernels.triton.rotary.rotary_launch import Rotation, rotary_pair

    rotation = Rotation(call.interleaved, call.width, call.conjugate, call.seq_start)
    out_q, out_k = (
        torch.empty(x.shape, dtype=call.out_dtype, device=x.device) for x in (call.q, call.k)
    )
    return rotary_pair(call.q, call.k, call.cos, call.sin, rotation, outs=(out_q, out_k))


TRITON = register(ROTARY_PAIR, "rotary.rotary_launch", run, refuses=refuses)
