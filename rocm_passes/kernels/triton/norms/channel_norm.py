"""RMSNorm over the channels in one pass, written behind other frames where it stands behind
them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rocm_passes.ops.channel_norm import CHANNEL_NORM, ChannelNorm
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rms_norm import rounds_unlike
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target, needs_import, needs_triton


def run(call: ChannelNorm) -> Tensor:
    from rocm_passes.kernels.triton.convolution.frames import joined
    from rocm_passes.kernels.triton.norms.channel_norm_kernel import channel_norm

    form: Any = call.form
    x = settled(call.x)

    def compute(out: Tensor | None) -> Tensor:
        return channel_norm(
            x,
            call.gamma,
            call.bias,
            form=form,
            eps=call.eps,
            scale=call.scale,
            silu=call.silu,
            round_before_weight=call.round_to is not None,
            out_dtype=call.out_dtype,
            x_bias=call.x_bias,
            out=out,
        )

    return joined(call.front, call.repeat_first, x, call.out_dtype, compute)


def refuses(call: ChannelNorm, target: Target) -> str | None:
    from rocm_passes.kernels.triton.norms.channel_norm_kernel import MAX_CHANNELS

    reason = rounds_unlike(call.round_to, call.x)
    channels = call.x.shape[1]
    if reason is None and isinstance(channels, int) and channels > MAX_CHANNELS:
        return f"{channels} channels; at most {MAX_CHANNELS} are taken"
    return reason


def note(call: ChannelNorm, target: Target) -> str | None:
    if call.rounds_between:
        return (
            "scale, weight and SiLU are computed in fp32 and rounded once, where the graph "
            "rounds each"
        )
    return None


TRITON = CHANNEL_NORM.register(
    Lowering(
        "triton",
        requires=(
            needs_triton,
            needs_import("rocm_passes.kernels.triton.norms.channel_norm_kernel"),
        ),
        refuses=refuses,
        note=note,
        run=run,
        launches=True,
    )
)
