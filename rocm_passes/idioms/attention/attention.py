"""Attention to a kernel that serves it on the device, or away from one that computes it wrongly.

Before                                          After, by aiter
    s = _scaled_dot_product_flash_attention(        y = rocm_passes.attention(q, k, v, None, scale,
        q, k, v, 0.0, is_causal)                        is_causal, ..., "aiter")
    y = s[0]

Before: the same in float32, spelled out        After, in bounded memory
    y = cast(softmax(q k^T * scale) @ v)            y = rocm_passes.attention(..., "chunked")

When it pays: on gfx950 for bfloat16 heads of 128 and long sequences, by published figures; on
gfx942 where a measurement says so. Where torch's kernel is known to be wrong (heads of 384 on
gfx1100, of 512 on gfx1151), and where the graph would hold all scores of a long sequence, it is
computed in tiles.

Refused: dropout; a logsumexp that a backward pass reads; weights that are read elsewhere; dtypes
other than bfloat16, float16 and float32; a scale that is not known; operands in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.attention import sdpa, spelled
from rocm_passes.idioms.attention.operands import Read
from rocm_passes.ops import attention as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded
from rocm_passes.target import Target
from rocm_passes.tuning import tuning

NAME = "attention"
COVERS = {"attention": 1}
#: Chosen between by measurement: a library's kernels.
MEASURED = frozenset({"aiter", "aiter_fp8", "sdpa"})


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for node in n.calls(graph, *sdpa.KERNELS):
        yield from guarded(node, COVERS, _found, node, sdpa.read)
    for node in n.calls(graph, *sdpa.quantised()):
        yield Miss(node, "q, k and v are in 8 bits already", COVERS)
    for node in spelled.candidates(graph):
        yield from guarded(node, COVERS, _found, node, spelled.read)


def _found(anchor: fx.Node, read: Any) -> Found:
    made: Read | str = read(anchor)
    if isinstance(made, str):
        return Miss(anchor, made, COVERS)
    parameters = {
        "kernel": made.kernel,
        "heads": n.shape(made.q)[1],
        "key_heads": n.shape(made.k)[1],
        "head_size": n.shape(made.q)[3],
        "queries": n.shape(made.q)[2],
        "keys": n.shape(made.k)[2],
        "scale": made.scale,
        "causal": made.causal,
        "mask": made.bias is not None,
    }
    call = op.Attention(
        made.q,  # type: ignore[arg-type]
        made.k,  # type: ignore[arg-type]
        made.v,  # type: ignore[arg-type]
        made.bias,  # type: ignore[arg-type]
        made.scale,
        made.causal,
        bounds.ATTENTION_MIB.value,
        made.kernel,
    )
    return Match(anchor, made.nodes, (made.out,), call, COVERS, parameters)


def measured(
    able: Sequence[Lowering[Any]], call: op.Attention, target: Target, options: Options
) -> tuning.Picked | None:
    """By measurement, where aiter can take it and it is enough work to time."""
    libraries = [low for low in able if low.name in MEASURED]
    if len(libraries) < 2 or not call.has_numbers():
        return None
    if call.flops() < bounds.WORTH_MEASURING.value:
        return None
    return tuning.pick(call.key(), libraries, call, target, options)


IDIOM = Idiom(NAME, find, op.ATTENTION.lowerings, op.ATTENTION, measured=measured)
