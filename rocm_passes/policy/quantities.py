"""The quantities of a call that rules are about: one small function for each operator.

A size is None where it is symbolic, which no test of a rule accepts. Calls hold fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from rocm_passes.fx.nodes import dtype_name, static_int
from rocm_passes.ops.attention import Attention
from rocm_passes.ops.channel_norm import ChannelNorm
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.fused_norm import FusedNorm
from rocm_passes.ops.group_norm import GroupNorm
from rocm_passes.ops.group_norm_pad import GroupNormPad
from rocm_passes.ops.pad import Pad
from rocm_passes.ops.qk_norm_rotary import SpelledQkNormRotary
from rocm_passes.ops.rotary import SpelledRotary
from rocm_passes.ops.rotary_pair import SpelledRotaryPair
from rocm_passes.ops.upsampled_conv import UpsampledConv
from rocm_passes.policy import bounds
from rocm_passes.policy.memory import usual_memory_mib

Quantities = Mapping[str, Any]


def rows(x: Tensor) -> dict[str, Any]:
    """Of what is normalised over its last dimension."""
    return {
        "rows": static_int(math.prod(x.shape[:-1])),
        "columns": static_int(x.shape[-1]),
        "elements": static_int(math.prod(x.shape)),
    }


def _norm(call: Any) -> Quantities:
    return rows(call.x)


def _fused_norm(call: FusedNorm) -> Quantities:
    """chained: a residual or a modulation stands beside the norm."""
    return rows(call.x) | {
        "kind": call.kind,
        "branch_norm": bool(call.branch_norm),
        "chained": bool(call.branch_norm or call.branch is not None or call.scale0 is not None),
    }


def _group_norm(call: GroupNorm) -> Quantities:
    return {"elements": static_int(math.prod(call.x.shape)), "dtype": _dtype(call.x)}


def _group_norm_pad(call: GroupNormPad) -> Quantities:
    return {
        "elements": static_int(math.prod(call.x.shape)),
        "padded_elements": static_int(math.prod(call.shape)),
        "channels_last": bool(call.channels_last),
    }


def _channel_norm(call: ChannelNorm) -> Quantities:
    """joins: the graph puts the result behind other frames."""
    return {"elements": static_int(math.prod(call.x.shape)), "joins": bool(call.joins)}


def _pad(call: Pad) -> Quantities:
    return {
        "padded_elements": static_int(math.prod(call.shape)),
        "channels_last": bool(call.channels_last),
        "upsamples": any(r != 1 for r in call.repeats),
    }


def _conv3d(call: Conv3d) -> Quantities:
    """live_taps: temporal taps that see a frame that is not zero. in_channels: of one group.
    unfolded_fits: the copy of all taps' frames keeps to the memory bound."""
    (out, channels, taps, *spatial), live = call.weight.shape, call.live_taps()
    unfolded = call.unfolded_mib()
    return {
        "taps": static_int(taps),
        "live_taps": live,
        "dropped_taps": None if live is None else taps - live,
        "out_channels": static_int(out),
        "in_channels": static_int(channels),
        "spatial_kernel": math.prod(spatial),
        "groups": call.groups,
        "dtype": _dtype(call.x[0]),
        "channels_last": bool(call.channels_last),
        "absorbs_padding": bool(call.absorbed),
        "conv_dtype_given": call.compute is not None,
        "unfolded_fits": None if unfolded is None else unfolded <= usual_memory_mib(call),
    }


def _attention(call: Attention) -> Quantities:
    """scores_fit: all scores in float32 keep to the bound. v_lies_unlike_k: their dims stand in
    another order in memory. rocm: the version that torch was built for.
    """
    fit = call.scores_mib() <= bounds.ATTENTION_MIB.value if call.has_numbers() else None
    return {
        "kernel": call.kernel,
        "dtype": _dtype(call.q),
        "head_size": static_int(call.q.shape[3]),
        "queries": static_int(call.q.shape[2]),
        "keys": static_int(call.k.shape[2]),
        "masked": call.bias is not None,
        "scores_fit": fit,
        "v_lies_unlike_k": call.v_lies_unlike_k(),
        "rocm": ".".join((torch.version.hip or "").split(".")[:2]),
    }


def _upsampled_conv(call: UpsampledConv) -> Quantities:
    return {"repetition": call.repetition()}


def _rotary(call: SpelledRotary) -> Quantities:
    """spelling: how the graph rotates."""
    scattered = "slice assignment" if call.recipe.scattered else "real"
    return _to_rotate([call.x]) | {"spelling": "complex" if call.recipe.complex else scattered}


def _rotary_pair(call: SpelledRotaryPair) -> Quantities:
    """The channels are those of q."""
    return _rotary(call.each()[0])


def _qk_norm_rotary(call: SpelledQkNormRotary) -> Quantities:
    return _to_rotate(call.q)


def _to_rotate(q: Sequence[Tensor]) -> dict[str, Any]:
    """channels: symbolic where the sizes are, so that a bound that is provable counts.

    cuda_graphs: Inductor replays the graph, and a launch costs the host nothing.
    """
    channels = sum(x.numel() for x in q)
    return {
        "channels": channels,
        "static_sizes": isinstance(channels, int),
        "cuda_graphs": bool(inductor_config.triton.cudagraphs),
    }


def _dtype(x: Tensor) -> str:
    return dtype_name(x.dtype)


#: By the name of the operator. For an operator that is not here only the condition {} holds.
QUANTITIES: dict[str, Callable[[Any], Quantities]] = {
    "rms_norm": _norm,
    "layer_norm": _norm,
    "fused_norm": _fused_norm,
    "group_norm": _group_norm,
    "group_norm_pad": _group_norm_pad,
    "channel_norm": _channel_norm,
    "pad": _pad,
    "conv3d": _conv3d,
    "upsampled_conv": _upsampled_conv,
    "attention": _attention,
    "rotary": _rotary,
    "rotary_pair": _rotary_pair,
    "qk_norm_rotary": _qk_norm_rotary,
}


def quantities(operator: str, call: Any) -> Quantities:
    return QUANTITIES.get(operator, lambda call: {})(call)
