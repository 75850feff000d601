"""RMSNorm over the channels in one pass, written behind other frames where it stands behind them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rocm_passes.ops.channel_norm import CHANNEL_NORM, ChannelNorm
from rocm_passes.ops.operator import Lowering, Verdict, measured
from rocm_passes.ops.rms_norm import rounds_unlike
from rocm_passes.ops.strides import settled
from rocm_passes.target import Target, needs_import, needs_triton

#: Elements from which on a norm that writes into a joined video is worth a kernel of its own.
LEAST_JOINED = 2**22


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
        return "scale, weight and SiLU are computed in fp32 and rounded once, where the graph rounds each"
    return None


def pays(call: ChannelNorm, target: Target) -> Verdict:
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    if not call.joins:
        # Alone the kernel is the faster one (docs/performance.md), but whole decodes on an H200 were not:
        # Inductor fuses the norm with pads and biases.
        return Verdict(False, "in whole decodes Inductor's fused code was no slower (measured on an H200)")
    size = math.prod(call.x.shape)
    if not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if size < LEAST_JOINED:
        return Verdict(False, f"below {LEAST_JOINED} elements it is left to Inductor to fuse (not measured)")
    return Verdict(True, f"written where it is read, which spares the copy of a video ({measured(target)})")


TRITON = CHANNEL_NORM.register(
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.channel_norm_kernel")),
        refuses=refuses,
        note=note,
        pays=pays,
        run=run,
        launches=True,
    )
)
