"""A norm on the branch and the residual after it: x + gate * RMSNorm(y).

Before (Z-Image in bf16)                        After
    n = rms_norm(y) * w                             s = rocm_passes.fused_norm(x, y, gate, True, w, ..., "none",
    s = x + gate * n                                    ..., "triton")

without a gate (Z-Image's context refiner), with (1 + w) (Gemma), or with the gate inside the norm (Mochi). A norm with
a bias stands alone.

When it pays: seldom; Inductor fuses it well.

Refused: as in residual_norm_modulate.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms import chains
from rocm_passes.idioms.norms.chains import Chain, Residual
from rocm_passes.idioms.norms.residual_norm_modulate import sites
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.ops import fused_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom

NAME = "norm_residual"


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    branches = chains.branch_norms(chains.all_norms(graph))
    taken: set[fx.Node] = set()
    for norm in branches.values():
        residual = _residual_after(norm, branches)
        if residual is not None:
            yield from sites(Chain(None, residual), taken)


def _residual_after(norm: RMS, branches: dict[fx.Node, RMS]) -> Residual | None:
    """The sum that the norm's result goes to, at most a gate and casts later."""
    step = n.only_user(norm.result)
    for _ in range(3):
        if n.is_call(step, aten.mul.Tensor) or n.is_cast(step):
            step = n.only_user(step)
    if not n.is_call(step, aten.add.Tensor):
        return None
    rounded = n.only_user(step)
    narrowing = rounded is not None and n.is_cast(rounded) and not n.is_widening(rounded)
    total = rounded if narrowing and rounded is not None else step
    residual = chains.residual(total, branches)
    return residual if residual is not None and residual.norm is norm else None


IDIOM = Idiom(
    NAME,
    find,
    op.FUSED_NORM.lowerings,
    op.FUSED_NORM,
    keeps=("_fused_rms_norm",),
    fuses=True,
)
