"""Norm and rotation of q and k: one launch for each stream, written into the joint tensors."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.qk_norm_rotary import QK_NORM_ROTARY, QkNormRotary, joint, refuses
from rocm_passes.target import needs_import, needs_triton


def run(call: QkNormRotary) -> list[Tensor]:
    from rocm_passes.kernels.triton.rotary.qk_norm_rotary_launch import qk_norm_rotary

    out_q, out_k = joint(call.q, call.out_dtype), joint(call.k, call.out_dtype) if call.k else None
    begin = 0
    for i, x in enumerate(call.q):
        tokens = x.shape[1]
        qk_norm_rotary(
            x,
            call.k[i] if call.k else None,
            call.cos[i],
            call.sin[i],
            interleaved=call.interleaved,
            eps_q=call.q_eps[i],
            eps_k=call.k_eps[i] if call.k else None,
            across_heads=call.across_heads,
            q_weight=call.q_weight[i] if call.q_weight else None,
            k_weight=call.k_weight[i] if call.k_weight else None,
            round_before_weight=call.round_before_weight,
            round_after_norm=call.round_after_norm,
            rotary_dim=call.width,
            conjugate=call.conjugate,
            seq_start=call.seq_start[i],
            out_q=out_q.narrow(1, begin, tokens),
            out_k=None if out_k is None else out_k.narrow(1, begin, tokens),
        )
        begin += tokens
    return [out_q] if out_k is None else [out_q, out_k]


TRITON = QK_NORM_ROTARY.register(
    Lowering(
        "triton",
        requires=(
            needs_triton,
            needs_import("rocm_passes.kernels.triton.rotary.qk_norm_rotary_launch"),
        ),
        refuses=refuses,
        run=run,
        launches=True,
    ),
    first=True,
)
