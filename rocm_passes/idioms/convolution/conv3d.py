"""Conv3d: `aten.convolution` over five dimensions, not transposed, to a lowering that suits the
device.

Before (Wan's causal convolution, cached)       After, as the sum of temporal taps
    x = cat([cache, x], 2)                          x  = cat([cache, x], 2)
    p = constant_pad_nd(x, [1, 1, 1, 1, 0, 0])      yk = convolution(x[:, :, k:k+T] as frames,
    y = convolution(p, w, bias, ...)                         w[:, :, k], padding 1)  for each tap k
                                                    y  = y0 + y1 + y2 + bias

Before (the first frame, or an image)           After, as conv2d
    p = constant_pad_nd(x, [1, 1, 1, 1, 2, 0])      y = convolution(x as a frame, w[:, :, 2], bias,
    y = convolution(p, w, bias, ...)                        padding 1)

When it pays: always where taps see only zeros; where the spatial padding would be copied; on AMD,
by published results, since MIOpen had no heuristics for 3-D convolutions: one conv2d over the
unfolded frames (16 bits) or the sum of taps (float32); on NVIDIA cuDNN's conv3d, the Triton kernel
or the sum of taps, by shape. A sum of taps rounded to 16 bits is less exact than conv3d and needs
rewrite_numerics="fast".

Refused: an empty result (eager raises there); symbolic weight sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution import padding
from rocm_passes.idioms.convolution.videos import SORTED_BY
from rocm_passes.idioms.convolution.worth import worth_measuring
from rocm_passes.kernels.aten.conv3d import WHOLE_KERNEL
from rocm_passes.ops import conv3d as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import layout
from rocm_passes.policy.memory import usual_memory_mib
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded
from rocm_passes.target import Target
from rocm_passes.tuning import tuning

NAME = "conv3d"
COVERS = {"conv3d": 1}
COMPUTE_DTYPES = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    last = layout.channels_last(graph, context.options, context.target)
    found = [
        each
        for node in n.calls(graph, aten.convolution.default)
        if len(n.shape(node.args[0])) == 5 and not node.args[6]
        for each in guarded(node, COVERS, _found, node, context, last and memory_format.suits(node))
    ]
    largest = max((f.values().tensors_mib() for f in found if isinstance(f, Match)), default=0.0)
    for each in found:
        if isinstance(each, Match) and isinstance(each.call, op.Conv3d):
            each = replace(each, call=replace(each.call, largest_mib=largest))
        yield each


def _found(node: fx.Node, context: Context, channels_last: bool) -> Found:
    x, weight, bias, stride, pads, dilation, _, _, groups = node.args
    assert isinstance(x, fx.Node)
    read = padding.read(x, _three(pads))
    parameters = {
        "kernel": list(n.shape(weight)[2:]),
        "stride": list(_three(stride)),
        "padding": list(read.padding),
        "zero_frames": [read.front, read.back],
        "pieces": len(read.pieces),
        "dilation": list(_three(dilation)),
        "groups": groups,
        "bias": bias is not None,
        "channels_last": channels_last,
    }
    if halo := padding.halo(read.pieces):
        parameters["halo"] = halo
    if SORTED_BY in node.meta:
        parameters["channels_sorted_by"] = node.meta[SORTED_BY]
    reason = refusal(node)
    if reason is not None:
        return Miss(node, reason, COVERS, parameters)
    arguments: dict[str, Any] = {
        "x": tuple(read.pieces),
        "weight": weight,
        "bias": bias,
        "zeros": (read.front, read.back),
        "stride": _three(stride),
        "padding": read.padding,
        "dilation": _three(dilation),
        "groups": groups,
        "channels_last": channels_last,
        "compute": _compute_dtype(node, context),
        "absorbed": read.absorbed,
    }
    call = op.Conv3d(**arguments)
    site = Match(node, frozenset({node, *read.nodes}), (node,), call, COVERS, parameters)
    extra = site.values().rounded_up(context.options.conv_frames_bucket).extra_frames
    if not extra:
        return site
    return replace(
        site,
        call=replace(call, extra_frames=extra),
        parameters={**parameters, "extra_frames": extra},
    )


def refusal(node: fx.Node) -> str | None:
    if not all(isinstance(s, int) for s in n.shape(node.args[1])):
        return "the weight's sizes are symbolic"
    if not all(n.known(s > 0) for s in n.shape(node)):
        return f"its result is, or may be, empty: {tuple(n.shape(node))}"
    return None


def _compute_dtype(node: fx.Node, context: Context) -> torch.dtype | None:
    """conv_dtype, for float32 convolutions only."""
    return COMPUTE_DTYPES[context.options.conv_dtype] if n.dtype(node) is torch.float32 else None


def _three(values: object) -> tuple[int, ...]:
    """A convolution's list argument as three numbers (ATen lets one stand for all)."""
    found: tuple[int, ...] = tuple(values)  # type: ignore[arg-type]
    return found * 3 if len(found) == 1 else found


def measured(
    able: Sequence[Lowering[Any]], call: op.Conv3d, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where it is enough work to time and no lowering is the best one beyond doubt.

    A patch embedding is: as a matrix product it took at most a third of the time of any other
    lowering (H200).
    """
    if call.live_taps() is None or call.is_patch_embedding():
        return None
    if not worth_measuring(call):
        return None
    if call.spares_taps():
        able = [low for low in able if low.name not in WHOLE_KERNEL]
    return tuning.pick(call.key(), able, call, target, options, usual_mib=usual_memory_mib(call))


IDIOM = Idiom(NAME, find, op.CONV3D.lowerings, measured=measured)
