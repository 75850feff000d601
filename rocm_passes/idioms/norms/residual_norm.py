"""Residual and norm: the sum, which goes on as the residual stream, and its norm.

Before (Qwen3, T5, OmniGen in bf16)             After
    s = x + y                                       s, n = rocm_passes.fused_norm(x, y, ..., "rms", w, ..., "aiter")
    n = rms_norm(s) * w

with a gate, a norm on the branch, or fp32 arithmetic as in residual_norm_modulate.

When it pays: with a LayerNorm; with an RMSNorm Inductor's own code is as fast, and on AMD aiter's kernel by
what has been published.

Refused: as in residual_norm_modulate.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rocm_passes.idioms.norms import chains
from rocm_passes.idioms.norms.chains import Chain
from rocm_passes.idioms.norms.residual_norm_modulate import sites
from rocm_passes.ops import fused_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom

NAME = "residual_norm"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    found = chains.all_norms(graph)
    branches = chains.branch_norms(found)
    taken: set[fx.Node] = set()
    for norm in found:
        residual = chains.residual(norm.x, branches)
        if residual is not None:
            yield from sites(Chain(norm, residual), taken)


IDIOM = Idiom(
    NAME,
    find,
    op.FUSED_NORM.lowerings,
    op.FUSED_NORM,
    keeps=("native_layer_norm", "_fused_rms_norm"),
    fuses=True,
)
