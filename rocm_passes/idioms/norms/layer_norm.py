"""LayerNorm over the last dimension, alone.

Before                                              After
    y = native_layer_norm(x.float(), [D], w, b,         y = rocm_passes.layer_norm(x, w, b, eps,
            eps)[0]                                             bf16, "triton")
    y = convert(y, bf16)

When it pays: not by itself. Inductor fuses it with what stands before and after; norm_modulate and
residual_norm take it together with that.

Refused: several normalised dimensions; the mean or rsqrt used elsewhere (saved for a backward
pass); fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.norms.layer import Layer
from rocm_passes.idioms.norms.reading import readings
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.ops import layer_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss
from rocm_passes.rewrite.rewriter import escapes

NAME = "layer_norm"
COVERS = {"layer_norm": 1}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for reading in readings(graph, context):
        if reading.idiom == NAME and not isinstance(reading.norm, RMS):
            yield _found(reading.anchor, reading.norm)


def _found(anchor: fx.Node, read: Layer | str) -> Found:
    if isinstance(read, str):
        return Miss(anchor, read, COVERS)
    reason = refusal(read)
    if reason is not None:
        return Miss(anchor, reason, COVERS, read.parameters())
    arguments: dict[str, Any] = {
        "x": read.x,
        "weight": read.weight,
        "bias": read.bias,
        "eps": read.eps,
        "out_dtype": read.out_dtype,
        "rounds_between": read.rounds_between,
    }
    call = op.LayerNorm(**arguments)
    return Match(anchor, frozenset(read.nodes), (read.result,), call, COVERS, read.parameters())


def refusal(read: Layer) -> str | None:
    """Why a norm that was read cannot be computed by one operator, or None where it can."""
    dtype = n.tensor(read.x).dtype
    if (
        dtype not in n.FLOATING
        or read.compute_dtype is torch.float64
        or read.out_dtype not in n.FLOATING
    ):
        return f"it computes in {read.compute_dtype} on {dtype} and gives {read.out_dtype}"
    outside = escapes(frozenset(read.nodes), (read.result,))
    if outside is not None:
        return f"an inner value ({outside.name}) is used outside the norm"
    return None


IDIOM = Idiom(NAME, find, op.LAYER_NORM.lowerings, op.LAYER_NORM, preserves=("native_layer_norm",))
