"""RMSNorm over the channels in one pass, written behind other frames where it stands behind
them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.ops.channel_norm import CHANNEL_NORM, ChannelNorm
from rocm_passes.ops.rms_norm import rounds_unlike
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target


def run(call: ChannelNorm) -> Tensor:
    from rocm_passes.kernels.triton.convolution.frames import joined
    from rocm_passes.kernels.triton.norms.channel_norm_launch import channel_norm

    call = replace(call, x=settled(call.x))
    return joined(
        call.front,
        call.repeat_first,
        call.x,
        call.out_dtype,
        lambda out: channel_norm(call, out),
    )


def refuses(call: ChannelNorm, target: Target) -> str | None:
    from rocm_passes.kernels.triton.norms.channel_norm_launch import MAX_CHANNELS

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


TRITON = register(CHANNEL_NORM, "norms.channel_norm_launch", run, refuses=refuses, note=note)
