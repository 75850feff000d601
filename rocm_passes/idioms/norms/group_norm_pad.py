"""GroupNorm, SiLU or not, whose result is padded for a convolution: HunyuanVideo's resnets.

Before                                              After
    g = native_group_norm(x, w, b, N, C, HW,            p = rocm_passes.group_norm_pad(x, None, 32,
            32, eps)[0]                                         w, b, eps, True, True, bf16,
    s = silu(g)                                                 [1, 1, 1, 1, 2, 0], "replicate",
    p = replication_pad3d(s, [1, 1, 1, 1, 2, 0])                True, "triton")
    y = convolution(p, w, bias, ...)                    y = convolution(p, w, bias, ...)

When it pays: where the norm's kernel does, before a convolution that runs channels-last; the
padding costs no pass over memory of its own then.

Refused: SpatialNorm3D's multiplier and addend. A norm or a pad that is refused by itself is left to
its own idiom.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution import pad
from rocm_passes.idioms.norms import group_norm
from rocm_passes.ops import group_norm_pad as op
from rocm_passes.policy import layout
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

NAME = "group_norm_pad"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    last = layout.channels_last(graph, context.options, context.target)
    for node in n.calls(graph, aten.native_group_norm.default):
        norm = group_norm.read(node)
        if not isinstance(norm, Match):
            continue
        padded = n.only_user(norm.outputs[0])
        if not n.is_call(padded, *pad.MODES) or not pad.is_candidate(padded):
            continue
        if pad.refusal(padded) is None and any(pad.padding(padded)):
            yield _found(norm, padded, last)


def _found(norm: Match, padded: fx.Node, channels_last: bool) -> Found:
    covers = {**norm.covers, **pad.covers(padded)}
    arguments = norm.call.arguments()
    parameters = {
        **norm.parameters,
        "mode": pad.MODES[padded.target],
        "padding": pad.padding(padded),
    }
    for name in ("front", "repeat_first"):
        del arguments[name]
    for name in ("multiplier", "addend", "pixel_index"):
        if arguments.pop(name) is not None:
            return Miss(
                norm.anchor, f"the norm has a {name}, as SpatialNorm3D has", covers, parameters
            )
    parameters["channels_last"] = pad.into_channels_last(padded, channels_last)
    arguments |= {name: parameters[name] for name in ("padding", "mode", "channels_last")}
    return Match(
        norm.anchor,
        norm.nodes | {padded},
        (padded,),
        op.GroupNormPad(**arguments),
        covers,
        parameters,
    )


IDIOM = Idiom(
    NAME,
    find,
    op.GROUP_NORM_PAD.lowerings,
    op.GROUP_NORM_PAD,
    preserves=(*group_norm.IDIOM.preserves, *pad.PRESERVES),
    fuses=True,
)
