"""Residual, norm and modulation: what stands between two sublayers of a diffusion transformer, as one site.

Before (Flux in bf16)                               After
    s = x + gate * y                                    s, m = rocm_passes.fused_norm(x, y, gate, ..., "layer",
    n = native_layer_norm(s, [D], None, None, eps)[0]       ..., scale, shift, ..., "triton")
    m = n * (1 + scale) + shift

With an RMSNorm on the branch (Z-Image, Lumina2), with one norm that feeds two modulations (SD3.5), with sum
and modulation in fp32 and one rounding at the end (Wan); either norm with (1 + weight) (Gemma), the one after
the sum with a bias. idioms/norms/chains.py reads them.

When it pays: each row is read once and written once, where Inductor's reduction reads it again.

Refused: an inner value used outside; more than two uses of the norm; fp64. Its parts then stand for
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rocm_passes.idioms.norms import chains
from rocm_passes.idioms.norms.chains import Chain
from rocm_passes.ops import fused_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

NAME = "residual_norm_modulate"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    found = chains.all_norms(graph)
    branches = chains.branch_norms(found)
    taken: set[fx.Node] = set()
    for norm in found:
        modulations = chains.modulations(norm)
        residual = chains.residual(norm.x, branches) if modulations else None
        if residual is not None:
            yield from sites(Chain(norm, residual, modulations), taken)


def sites(chain: Chain, taken: set[fx.Node]) -> Iterator[Found]:
    """The chain as a site, unless an earlier one of the same search has its nodes."""
    reason = chain.refusal()
    if reason is not None:
        yield Miss(chain.anchor, reason, chain.covers(), chain.parameters())
    elif not chain.nodes & taken:
        taken |= chain.nodes
        yield Match(
            chain.anchor,
            chain.nodes,
            chain.outputs,
            op.FusedNorm(**chain.arguments()),
            chain.covers(),
            chain.parameters(),
        )


IDIOM = Idiom(
    NAME,
    find,
    op.FUSED_NORM.lowerings,
    op.FUSED_NORM,
    keeps=("native_layer_norm", "_fused_rms_norm"),
    fuses=True,
)
