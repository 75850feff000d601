"""RMSNorm over the last dimension, alone.

Formula: y = x * rsqrt(mean(x^2, -1) + eps) * weight + bias, in the spellings of torch.nn.RMSNorm,
diffusers, Llama, T5, Mochi, Gemma (1 + weight), without a weight and without a bias.
idioms/norms/rms.py reads them.

Before (diffusers' RMSNorm in bf16)             After
    f   = convert(x, f32)                           y = rocm_passes.rms_norm(x, w, None, None, 1e-6,
    v   = mean(pow(f, 2), [-1], True)                       0.0, bf16, None, bf16, "add", False,
    r   = rsqrt(v + 1e-6)                                   "aiter")
    y   = convert(x * r, bf16) * w

When it pays: seldom. Inductor's own kernel comes within 1.15x of the memory floor and goes on to
fuse the neighbours, which an opaque call cuts. aiter's kernel has been published as faster at full
width on MI300.

Refused: normalisation over other dims; the rsqrt used elsewhere (saved for a backward pass); an
inner value used outside; integer or fp64 input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.norms.layer import Layer
from rocm_passes.idioms.norms.reading import readings
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.ops import rms_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss
from rocm_passes.rewrite.rewriter import escapes

NAME = "rms_norm"
COVERS = {"rms_norm": 1}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for reading in readings(graph, context):
        if reading.idiom == NAME and not isinstance(reading.norm, Layer):
            yield _found(reading.anchor, reading.norm)


def _found(anchor: fx.Node, read: RMS | str) -> Found:
    if isinstance(read, str):
        return Miss(anchor, read, COVERS)
    reason = refusal(read)
    if reason is not None:
        return Miss(anchor, reason, COVERS, read.parameters())
    arguments = {
        "x": read.x,
        "weight": read.weight,
        "bias": read.bias,
        **read.eps_arguments(),
        "weight_offset": read.weight_offset,
        "round_to": read.round_to,
        "round_product": read.round_product,
        "out_dtype": read.out_dtype,
        "eps_kind": read.eps_kind,
        "rounds_between": read.rounds_between,
    }
    call = op.RmsNorm(**arguments)
    return Match(anchor, frozenset(read.nodes), (read.result,), call, COVERS, read.parameters())


def refusal(read: RMS) -> str | None:
    """Why a norm that was read cannot be computed by one operator, or None where it can."""
    dtype = n.tensor(read.x).dtype
    if not {dtype, read.out_dtype} <= n.FLOATING or read.compute_dtype is torch.float64:
        return f"it computes in {read.compute_dtype} on {dtype} and gives {read.out_dtype}"
    outside = escapes(frozenset(read.nodes), (read.result,))
    if outside is not None:
        return f"an inner value ({outside.name}) is used outside the norm"
    return None


IDIOM = Idiom(NAME, find, op.RMS_NORM.lowerings, op.RMS_NORM, preserves=("_fused_rms_norm",))
