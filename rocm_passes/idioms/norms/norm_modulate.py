"""Norm and modulation: adaLN, where no residual of the same graph stands before it.

Before (Qwen-Image in bf16)                             After
    n = native_layer_norm(x, [D], None, None, eps)[0]       m = rocm_passes.fused_norm(x, ..., "layer", ...,
    m = n * (1 + scale) + shift                                 scale, shift, ..., "triton")

The factor first or second, with or without a shift, per sample or per token, in the norm's dtype or in fp32
until the end (Wan, Kandinsky); one norm may feed two of them.

When it pays: with a LayerNorm, for which Inductor's reduction reads each row twice.

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

NAME = "norm_modulate"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    taken: set[fx.Node] = set()
    for norm in chains.all_norms(graph):
        modulations = chains.modulations(norm)
        if modulations:
            yield from sites(Chain(norm, modulations=modulations), taken)


IDIOM = Idiom(
    NAME,
    find,
    op.FUSED_NORM.lowerings,
    op.FUSED_NORM,
    keeps=("native_layer_norm", "_fused_rms_norm"),
    fuses=True,
)
