"""RMSNorm of q and k, per head or over all heads, then the rotation; streams written side by side.

    q' = rotate(q * rsqrt(mean(q^2) + eps) * weight)        and the same for k

Text and image streams, each with weights and tables of its own, are written into one joint tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.fx.reuse import reuse
from rocm_passes.ops import rotary as one
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.rotary import Rotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target

aten = torch.ops.aten

#: As the kernel: the widest row of a norm over all heads.
MAX_ROW = 32768


@dataclass(frozen=True)
class QkNormRotary(Call):
    """Returns [B, sum(Si), Hq, D], and the same of k, of out_dtype and contiguous.

    q: streams [B, Si, Hq, D], any strides; k: as many [B, Si, Hk, D], or none. q_weight, k_weight:
    one for each stream or none, [D], or [H * D] if across_heads. cos, sin: of each stream, as for
    `Rotary`, from its token seq_start[i] on; a table of no rows leaves the stream normalised only.
    q_eps, k_eps: of each stream's norms. round_before_weight: the norm is rounded to x's dtype
    before the weight;
    round_after_norm: before the rotation. interleaved, width, conjugate: as for `Rotary`.
    """

    q: Sequence[Tensor]
    k: Sequence[Tensor]
    q_weight: Sequence[Tensor]
    k_weight: Sequence[Tensor]
    cos: Sequence[Tensor]
    sin: Sequence[Tensor]
    seq_start: Sequence[int]
    q_eps: Sequence[float]
    k_eps: Sequence[float]
    across_heads: bool
    round_before_weight: bool
    round_after_norm: bool
    interleaved: bool
    width: int
    conjugate: bool
    out_dtype: torch.dtype

    @property
    def results(self) -> int:
        return 2 if self.k else 1

    def rotation(self, i: int, x: Tensor) -> Rotary:
        """The rotation of stream i, in q or in k."""
        rest = (self.interleaved, self.width, self.conjugate, self.seq_start[i], self.out_dtype)
        return Rotary(x, self.cos[i], self.sin[i], *rest)


def reference(call: QkNormRotary) -> list[Tensor]:
    """Plain torch, in float32."""
    results = []
    sides = ((call.q, call.q_weight, call.q_eps), (call.k, call.k_weight, call.k_eps))
    for streams, weights, eps in sides:
        parts = []
        for i, x in enumerate(streams):
            y = _normed(call, x, weights[i] if weights else None, eps[i])
            parts.append(one.rotated(call.rotation(i, x), y).to(call.out_dtype))
        if parts:
            results.append(torch.cat(parts, dim=1).contiguous())
    return results


def _normed(call: QkNormRotary, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    dims = (-2, -1) if call.across_heads else (-1,)
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(dims, keepdim=True) + eps)
    if call.round_before_weight:
        y = y.to(x.dtype).float()
    if weight is not None:
        y = y * weight.float().reshape(x.shape[-2:] if call.across_heads else x.shape[-1:])
    return y.to(x.dtype).float() if call.round_after_norm else y


def fake(call: QkNormRotary) -> list[Tensor]:
    return [joint(streams, call.out_dtype) for streams in (call.q, call.k) if streams]


def joint(streams: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Room for the results of all streams, one behind the other."""
    batch, _, heads, channels = streams[0].shape
    tokens = sum(s.shape[1] for s in streams)
    return torch.empty((batch, tokens, heads, channels), dtype=dtype, device=streams[0].device)


@dataclass(frozen=True)
class Norm:
    """How the norm of a tensor is spelled: the views between its input and the rotation's, and its
    eps.
    """

    views: tuple[tuple[Any, tuple[Any, ...]], ...]
    recipe: Recipe
    eps: float


@dataclass(frozen=True)
class Streams:
    """What was read off the graph, without its nodes.

    q, k: the norm of each stream, with the recipe that brings it to [B, S, H, D]. rows: for each
    stream the part of its table set's tokens that are its own: (set, first, end), None for all, or
    no set where the stream is not rotated. tables: the recipe of each table set. q_out, k_out: how
    the joint result becomes the graph's.
    """

    q: tuple[Norm, ...]
    k: tuple[Norm, ...]
    rows: tuple[tuple[int | None, int | None, int | None], ...]
    tables: tuple[Recipe, ...]
    q_out: tuple[Recipe, tuple[Any, ...]]
    k_out: tuple[Recipe, tuple[Any, ...]] | None
    across_heads: bool
    round_before_weight: bool
    round_after_norm: bool

    @property
    def rotation(self) -> Recipe:
        return self.tables[0]


@dataclass(frozen=True)
class SpelledQkNormRotary(Call):
    """Norms and rotations as the graph spells them: what a match yields, and lowerings are asked
    about.

    q, k: the norms' inputs. tables: for each table set of cos1, sin1, cos2, sin2. contiguous: the
    operator's tables are written contiguous.
    """

    q: Sequence[Tensor]
    k: Sequence[Tensor]
    q_weight: Sequence[Tensor]
    k_weight: Sequence[Tensor]
    tables: Sequence[Sequence[Tensor]]
    streams: Streams
    contiguous: bool = False

    @property
    def results(self) -> int:
        return 2 if self.k else 1

    def prepared(self, b: Any) -> QkNormRotary:
        """The operator's call, with every view and table written."""
        streams, rotation = self.streams, self.streams.rotation
        cos, sin = self._tables(b)
        return QkNormRotary(
            q=[_heads(b, x, norm) for x, norm in zip(self.q, streams.q, strict=True)],
            k=[_heads(b, x, norm) for x, norm in zip(self.k, streams.k, strict=True)],
            q_weight=[_vector(b, w) for w in self.q_weight],
            k_weight=[_vector(b, w) for w in self.k_weight],
            cos=cos,
            sin=sin,
            seq_start=[
                0 if i is None else streams.tables[i].seq_start or 0 for i, _, _ in streams.rows
            ],
            q_eps=[norm.eps for norm in streams.q],
            k_eps=[norm.eps for norm in streams.k],
            across_heads=streams.across_heads,
            round_before_weight=streams.round_before_weight,
            round_after_norm=streams.round_after_norm,
            interleaved=rotation.interleaved,
            width=rotation.width // rotation.heads,
            conjugate=rotation.conjugate,
            out_dtype=streams.q_out[0].out_dtype,
        )

    def _tables(self, b: Any) -> tuple[list[Any], list[Any]]:
        """cos and sin of each stream: its rows of its table set, or no rows."""
        recipes = zip(self.tables, self.streams.tables, strict=True)
        sets = [one.tables_of(b, tables, recipe, self.contiguous) for tables, recipe in recipes]
        cos: list[Any] = []
        sin: list[Any] = []
        for which, first, end in self.streams.rows:
            rows = (0, 0) if which is None else (first, end)
            for found, table in zip((cos, sin), sets[which or 0], strict=True):
                found.append(_rows(b, table, rows))
        return cos, sin

    def finished(self, b: Any, results: list[Any]) -> list[Any]:
        outs = (out for out in (self.streams.q_out, self.streams.k_out) if out is not None)
        return [layout.original(b, y, *out) for y, out in zip(results, outs, strict=True)]


def _rows(b: Any, table: Any, rows: tuple[int | None, int | None]) -> Any:
    return table if rows == (None, None) else reuse(b, aten.slice.Tensor, table, 1, *rows)


def _heads(b: Any, x: Any, norm: Norm) -> Any:
    for target, rest in norm.views:
        x = b(target, x, *rest)
    return layout.bshd(b, x, norm.recipe)


def _vector(b: Any, weight: Any) -> Any:
    return weight if len(b.value(weight).shape) == 1 else b(aten.reshape.default, weight, [-1])


def refuses(call: SpelledQkNormRotary, target: Target) -> str | None:
    """Why no kernel can take these norms and rotations, or None."""
    if any(recipe.fp64 for recipe in call.streams.tables):
        return "the graph rotates in float64 (rewrite_numerics='fast' allows float32)"
    own = call.prepared(Eager())
    for x in (*own.q, *own.k, *own.q_weight, *own.k_weight, *own.cos, *own.sin):
        if x.dtype not in one.FLOATS:
            return f"an input is {x.dtype}"
    if own.out_dtype not in one.FLOATS:
        return f"the result is {own.out_dtype}"
    return _streams_misfit(own) or _tables_misfit(own, call.streams)


def _streams_misfit(own: QkNormRotary) -> str | None:
    first = own.q[0]
    for name, streams in (("q", own.q), ("k", own.k)):
        for i, x in enumerate(streams):
            heads, channels = x.shape[2:]
            if not isinstance(heads, int) or not isinstance(channels, int):
                return "the number of heads or of channels is symbolic"
            if not n.same_shape(x.shape[::3], first.shape[::3]) or x.dtype is not first.dtype:
                return (
                    f"{name} is {list(x.shape)} of {x.dtype} and q {list(first.shape)} of "
                    f"{first.dtype}"
                )
            if not n.same_shape(x.shape[1:3], (own.q[i].shape[1], streams[0].shape[2])):
                return f"{name} is {list(x.shape)} and q {list(own.q[i].shape)}"
            if own.across_heads and _padded(heads) * _padded(channels) > MAX_ROW:
                return (
                    f"a norm over {heads} heads of {channels} channels is more than the kernel "
                    "holds"
                )
    return None


def _tables_misfit(own: QkNormRotary, streams: Streams) -> str | None:
    for q, cos, sin, (which, _, _) in zip(own.q, own.cos, own.sin, streams.rows, strict=True):
        partial = which is None or streams.tables[which].seq_start is not None
        reason = one.tables_misfit("q", [q, *own.q, *own.k], cos, sin, partial)
        if reason is not None:
            return reason
    return None


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


#: Lowerings are asked about a `SpelledQkNormRotary` and run a `QkNormRotary`.
QK_NORM_ROTARY: Operator[Any] = Operator(
    "qk_norm_rotary", QkNormRotary, reference, fake, (2, 1), refuses
)
