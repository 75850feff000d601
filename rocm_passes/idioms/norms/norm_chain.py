"""A norm with the residual before it and the modulations after it, as one site: the largest chain
that can be taken.

residual_norm_modulate: what stands between two sublayers of a diffusion transformer (FLUX in bf16)

    Before                                          After
        s = x + gate * y                                s, m = rocm_passes.fused_norm(x, y, gate,
        n = native_layer_norm(s, [D], None,                     ..., "layer", ..., scale, shift,
                None, eps)[0]                                   ..., "triton")
        m = n * (1 + scale) + shift

    With an RMSNorm on the branch (Z-Image, Lumina2), with one norm that feeds two modulations
    (SD3.5), with sum and modulation in fp32 and one rounding at the end (Wan); either norm with (1
    + weight) (Gemma), the one after the sum with a bias. The factor stands first or second, with or
    without a shift, per sample or per token.

residual_norm: the sum, which goes on as the residual stream, and its norm (Qwen3, T5, OmniGen in
bf16)

    Before                                          After
        s = x + y                                       s, n = rocm_passes.fused_norm(x, y, ...,
        n = rms_norm(s) * w                                     "rms", w, ..., "aiter")

norm_modulate: adaLN where no residual of the same graph stands before it (Qwen-Image in bf16)

    Before                                          After
        n = native_layer_norm(x, [D], None,             m = rocm_passes.fused_norm(x, ..., "layer",
                None, eps)[0]                                   ..., scale, shift, ..., "triton")
        m = n * (1 + scale) + shift

norm_residual: a norm on the branch and the residual after it (Z-Image in bf16)

    Before                                          After
        n = rms_norm(y) * w                             s = rocm_passes.fused_norm(x, y, gate, True,
        s = x + gate * n                                        w, ..., "none", ..., "triton")

    Without a gate (Z-Image's context refiner), or with the gate inside the norm (Mochi).

residual.py and modulation.py read the parts. A chain ends before a table that is computed from its
own values.

When it pays: each row is read once and written once. With a LayerNorm, Inductor's reduction reads
it again. With an RMSNorm, Inductor's own code is as fast; on AMD aiter's kernel is faster by what
has been published. norm_residual pays seldom.

Refused: an inner value used outside; more than two uses of the norm; fp64. Its parts then stand for
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms.chains import Chain
from rocm_passes.idioms.norms.modulation import modulations
from rocm_passes.idioms.norms.reading import norms
from rocm_passes.idioms.norms.residual import Residual, branch_norms, is_rounding_or_widening
from rocm_passes.idioms.norms.residual import residual as residual_of
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.idioms.norms.rows import narrowing
from rocm_passes.ops.fused_norm import FUSED_NORM
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss

#: The names that chains have in the ledger and in the options, the largest first.
NAMES = ("residual_norm_modulate", "residual_norm", "norm_modulate", "norm_residual")


def find(name: str, graph: fx.Graph, context: Context) -> Iterator[Found]:
    """The chains of that name. One that shares nodes with an earlier one of its name is
    left out.
    """
    taken: set[fx.Node] = set()
    for chain in context.read_once(graph, _chains)[name]:
        reason = chain.refusal()
        covers, parameters = chain.covers(), chain.parameters()
        if reason is not None:
            yield Miss(chain.anchor, reason, covers, parameters)
        elif not chain.nodes & taken:
            taken |= chain.nodes
            yield Match(chain.anchor, chain.nodes, chain.outputs, chain.call(), covers, parameters)


def _chains(graph: fx.Graph, context: Context) -> dict[str, list[Chain]]:
    """Every chain of the graph, by its name."""
    found: dict[str, list[Chain]] = {name: [] for name in NAMES}
    every = norms(graph, context)
    branches = branch_norms(every)
    for norm in every:
        alone = frozenset(norm.nodes)
        before = residual_of(norm.x, branches)
        if before is not None:
            after = modulations(norm, alone | before.nodes)
            if after:
                found["residual_norm_modulate"].append(Chain(norm, before, after))
            found["residual_norm"].append(Chain(norm, before))
        after = modulations(norm, alone)
        if after:
            found["norm_modulate"].append(Chain(norm, modulations=after))
    for branch in branches.values():
        residual = _residual_after(branch, branches)
        if residual is not None:
            found["norm_residual"].append(Chain(None, residual))
    return found


def _residual_after(norm: RMS, branches: dict[fx.Node, RMS]) -> Residual | None:
    """The sum that the norm's result goes to, at most a gate and casts later."""
    step = n.only_user(norm.result)
    for _ in range(3):
        if step is not None and (n.is_call(step, aten.mul.Tensor) or is_rounding_or_widening(step)):
            step = n.only_user(step)
    if not n.is_call(step, aten.add.Tensor):
        return None
    rounded = narrowing(step)
    residual = residual_of(step if rounded is None else rounded, branches)
    return residual if residual is not None and residual.norm is norm else None


IDIOMS = tuple(
    Idiom(
        name,
        partial(find, name),
        FUSED_NORM.lowerings,
        FUSED_NORM,
        preserves=("native_layer_norm", "_fused_rms_norm")
        if name != "norm_residual"
        else ("_fused_rms_norm",),
        fuses=True,
    )
    for name in NAMES
)
