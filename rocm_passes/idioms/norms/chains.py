"""A norm with the residual before it and the modulations after it, as one call of `fused_norm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.idioms.norms.modulation import Modulation
from rocm_passes.idioms.norms.reading import Norm
from rocm_passes.idioms.norms.residual import Residual
from rocm_passes.idioms.norms.rms import RMS
from rocm_passes.ops.fused_norm import FusedNorm
from rocm_passes.rewrite.rewriter import escapes


@dataclass
class Chain:
    """A norm with what is taken of its surroundings. norm is None for a sum with a norm on its
    branch.
    """

    norm: Norm | None
    residual: Residual | None = None
    modulations: list[Modulation] = field(default_factory=list)

    @property
    def anchor(self) -> fx.Node:
        if self.norm is not None:
            return self.norm.anchor
        assert self.residual is not None and self.residual.norm is not None
        return self.residual.norm.anchor

    @property
    def nodes(self) -> frozenset[fx.Node]:
        found = set(self.norm.nodes) if self.norm is not None else set()
        if self.residual is not None:
            found |= self.residual.nodes
        for m in self.modulations:
            found |= m.nodes
        return frozenset(found)

    @property
    def keeps_sum(self) -> bool:
        if self.residual is None:
            return False
        return self.norm is None or any(u not in self.nodes for u in self.residual.total.users)

    @property
    def results(self) -> list[fx.Node]:
        if self.norm is None:
            return []
        return [m.result for m in self.modulations] or [self.norm.result]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        total = [self.residual.total] if self.residual is not None and self.keeps_sum else []
        return (*total, *self.results)

    def covers(self) -> dict[str, int]:
        found = {"layer_norm": 0, "rms_norm": 0}
        if self.norm is not None:
            found["rms_norm" if isinstance(self.norm, RMS) else "layer_norm"] += 1
        if self.residual is not None and self.residual.norm is not None:
            found["rms_norm"] += 1
        return {name: count for name, count in found.items() if count}

    def refusal(self) -> str | None:
        """Why one operator cannot compute it, or None where it can."""
        x = (
            self.residual.x
            if self.residual is not None
            else self.norm.x
            if self.norm is not None
            else None
        )
        read = [
            m for m in (self.norm, self.residual.norm if self.residual else None) if m is not None
        ]
        if any(m.compute_dtype is torch.float64 for m in read):
            return "it computes in float64"
        dtypes = [n.dtype(node) for node in (x, *self.outputs)]
        if self.residual is not None:
            dtypes += [n.dtype(self.residual.branch), n.dtype(self.residual.total)]
        if not all(d in n.FLOATING for d in dtypes):
            return f"it reads {dtypes[0]} and gives {', '.join(str(d) for d in dtypes[1:])}"
        if len(self.results) > 2:
            return f"the norm has {len(self.results)} different uses, and two are taken"
        if len({n.dtype(r) for r in self.results}) > 1:
            return "its results have different dtypes"
        outside = escapes(self.nodes, self.outputs)
        if outside is not None:
            return f"an inner value ({outside.name}) is used outside it"
        return None

    def call(self) -> FusedNorm:
        norm, r = self.norm, self.residual
        x = r.x if r is not None else norm.x if norm is not None else None
        assert x is not None
        inner = r.norm if r is not None else None
        none = {"eps_tensor": None, "eps": 0.0}
        inner_eps = inner.eps_arguments() if inner is not None else none
        plain = self.gives_scales
        pairs = [((m.scale if plain else m.factor), m.shift) for m in self.modulations]
        pairs += [(None, None)] * (2 - len(pairs))
        arguments: dict[str, Any] = {
            "x": x,
            "branch": r.branch if r is not None else None,
            "gate": r.gate if r is not None else None,
            "branch_norm": inner is not None,
            "branch_weight": inner.weight if inner is not None else None,
            "branch_weight_offset": inner.weight_offset if inner is not None else 0.0,
            "branch_eps_tensor": inner_eps["eps_tensor"],
            "branch_eps": inner_eps["eps"],
            "sum_dtype": n.dtype(r.total) if r is not None else n.dtype(x),
            "keep_sum": self.keeps_sum,
            "kind": "none" if norm is None else "rms" if isinstance(norm, RMS) else "layer",
            "weight": norm.weight if norm is not None else None,
            "bias": norm.bias if norm is not None else None,
            **(norm.eps_arguments() if norm is not None else none),
            "weight_offset": norm.weight_offset if norm is not None else 0.0,
            "round_to": norm.round_to if norm is not None else None,
            "round_product": norm.round_product if isinstance(norm, RMS) else None,
            "scale0": pairs[0][0],
            "shift0": pairs[0][1],
            "scale1": pairs[1][0],
            "shift1": pairs[1][1],
            "scale_offset": 1.0 if plain else 0.0,
            "outputs": len(self.results),
            "out_dtype": n.dtype(self.results[0]) if self.results else n.dtype(x),
            "rounds_between": self.rounds_between,
            "eps_kind": norm.eps_kind if isinstance(norm, RMS) else "add",
        }
        return FusedNorm(**arguments)

    @property
    def rounds_between(self) -> bool:
        """Does the graph round a value that the operator does not?"""
        if (self.residual is not None and self.residual.rounds) or self.norm is None:
            return self.residual is not None and self.residual.rounds
        if self.norm.rounds_between:
            return True
        factors = [m.factor for m in self.modulations if m.factor is not None]
        summed = [m.factor for m in self.modulations if m.scale is not None]
        normed = bool(factors) and self.norm.out_dtype in n.LOW_PRECISION
        # 1 + scale is rounded where it is a 16-bit sum; the operator adds in fp32.
        return normed or (self.gives_scales and any(n.dtype(f) in n.LOW_PRECISION for f in summed))

    @property
    def gives_scales(self) -> bool:
        """One offset serves both modulations: with any factor that is no plain 1 + scale, all are
        given whole.
        """
        return all(m.factor is None or m.scale is not None for m in self.modulations)

    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.norm.parameters()) if self.norm is not None else {}
        if self.residual is not None:
            found["gate"] = (
                list(n.shape(self.residual.gate)) if self.residual.gate is not None else None
            )
            found["sum_dtype"] = n.dtype(self.residual.total)
            found["sum_used_elsewhere"] = self.keeps_sum
            inner = self.residual.norm
            found["branch_norm"] = inner is not None
            if inner is not None:
                found["branch_weight_offset"] = inner.weight_offset
        if self.modulations:
            found["modulations"] = len(self.modulations)
            found["shift"] = any(m.shift is not None for m in self.modulations)
        return found
