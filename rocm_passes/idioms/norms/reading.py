"""Every RMSNorm and LayerNorm of a graph, read once for all the idioms that contain one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import layer, rms
from rocm_passes.idioms.norms.layer import Layer
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.idioms.norms.rows import roots
from rocm_passes.rewrite.match import Context, read_or
from rocm_passes.rewrite.rewriter import escapes

Norm = RMS | Layer


@dataclass(frozen=True)
class Reading:
    """What stands at an anchor: a norm, an RMSNorm with its bias; or the reason why it can't be
    taken.

    idiom: the norm's name in the ledger.
    """

    anchor: fx.Node
    idiom: str
    norm: Norm | str


def readings(graph: fx.Graph, context: Context) -> list[Reading]:
    """In graph order."""
    return context.read_once(graph, _read)


def norms(graph: fx.Graph, context: Context) -> list[Norm]:
    """Those that can be read."""
    return [r.norm for r in readings(graph, context) if not isinstance(r.norm, str)]


def _read(graph: fx.Graph, _: Context) -> list[Reading]:
    anchors = [*n.calls(graph, aten._fused_rms_norm.default), *layer.calls(graph), *roots(graph)]
    return [found for anchor in sorted(anchors) if (found := _at(anchor)) is not None]


def _at(anchor: fx.Node) -> Reading | None:
    name = "layer_norm" if n.is_call(anchor, aten.native_layer_norm.default) else "rms_norm"
    return read_or(lambda reason: Reading(anchor, name, reason), anchor, _read_at, anchor)


def _read_at(anchor: fx.Node) -> Reading | None:
    if n.is_call(anchor, aten.native_layer_norm.default):
        return Reading(anchor, "layer_norm", layer.read(anchor))
    if n.is_call(anchor, aten._fused_rms_norm.default):
        return _rms(anchor, rms.read_fused(anchor))
    by_hand = layer.read_by_hand(anchor)
    # The difference from the mean may have other readers: it is the input of an RMSNorm then.
    if isinstance(by_hand, Layer) and escapes(frozenset(by_hand.nodes), (by_hand.result,)) is None:
        return Reading(anchor, "layer_norm", by_hand)
    found = rms.read(anchor)
    if found is None:
        return None if by_hand is None else Reading(anchor, "layer_norm", by_hand)
    return _rms(anchor, found)


def _rms(anchor: fx.Node, found: RMS | str) -> Reading:
    return Reading(anchor, "rms_norm", rms.with_bias(found) if isinstance(found, RMS) else found)
