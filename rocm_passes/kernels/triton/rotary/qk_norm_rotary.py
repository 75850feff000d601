"""Norm and rotation of q and k: one launch for each stream, written into the joint tensors."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.qk_norm_rotary import QK_NORM_ROTARY, QkNormRotary, joint, refuses


def run(call: QkNormRotary) -> list[Tensor]:
    from rocm_passes.kernels.triton.rotary.qk_norm_rotary_launch import qk_norm_rotary
    from rocm_passes.kernels.triton.rotary.rotary_launch import HeadNorms, Rotation

    out_q, out_k = joint(call.q, call.out_dtype), joint(call.k, call.out_dtype) if call.k else None
    begin = 0
    for i, x in enumerate(call.q):
        tokens = x.shape[1]
        qk_norm_rotary(
            x,
            call.k[i] if call.k else None,
            call.cos[i],
            call.sin[i],
            Rotation(call.interleaved, call.width, call.conjugate, call.seq_start[i]),
            HeadNorms(
                call.q_eps[i],
                call.k_eps[i] if call.k else 0.0,
                call.across_heads,
                call.q_weight[i] if call.q_weight else None,
                call.k_weight[i] if call.k_weight else None,
                call.round_before_weight,
                call.round_after_norm,
            ),
            outs=(
                out_q.narrow(1, begin, tokens),
                None if out_k is None else out_k.narrow(1, begin, tokens),
            ),
        )
        begin += tokens
    return [out_q] if out_k is None else [out_q, out_k]


TRITON = register(QK_NORM_ROTARY, "rotary.qk_norm_rotary_launch", run, first=True, refuses=refuses)
