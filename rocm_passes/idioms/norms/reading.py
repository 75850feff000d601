"""Every RMSNorm and LayerNorm of a graph, read once for all the idioms that contain one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import layer, rms
from rocm_passes.idioms.norms.layer import Layer
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.idioms.norms.rows import roots
from rocm_passes.rewrite.match import Context
from rocm_passes.rewrite.rewriter import escapes

log = logging.getLogger(__name__)

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
    """A fault of a reader costs the norm that it was met at."""
    try:
        return _read_at(anchor)
    except Exception as error:
        log.exception("rocm_passes: reading the norm at %s failed", anchor)
        name = "layer_norm" if n.is_call(anchor, aten.native_layer_norm.default) else "rms_norm"
        return Reading(anchor, name, f"reading it failed: {type(error).__name__}: {error}")


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
