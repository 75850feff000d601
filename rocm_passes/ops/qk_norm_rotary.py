"""RMSNorm of q and k, per head or over all heads, then the rotation; streams written side by side.

    q' = rotate(q * rsqrt(mean(q^2) + eps) * weight)        and the same for k

Text and image streams, each with weights and tables of its own, are written into one joint tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.fx.reuse import reuse
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops import rotary as one
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.legacy import Lowering, Operator
from rocm_passes.ops.operator import needs_cpu
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target, needs_import, needs_triton

aten = torch.ops.aten

SCHEMA = (
    "(Tensor[] q, Tensor[] k, Tensor[] q_weight, Tensor[] k_weight, Tensor[] cos, Tensor[] sin, "
    "int[] seq_start, float[] q_eps, float[] k_eps, bool across_heads, bool round_before_weight, "
    "bool round_after_norm, bool interleaved, int width, bool conjugate, ScalarType out_dtype) -> Tensor[]"
)
#: As the kernel: the widest row of a norm over all heads.
MAX_ROW = 32768


def reference(
    q: list[Tensor],
    k: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: list[Tensor],
    sin: list[Tensor],
    seq_start: list[int],
    q_eps: list[float],
    k_eps: list[float],
    across_heads: bool,
    round_before_weight: bool,
    round_after_norm: bool,
    interleaved: bool,
    width: int,
    conjugate: bool,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    """Plain torch, in float32.

    q: streams [B, Si, Hq, D], any strides; k: as many [B, Si, Hk, D], or none. q_weight, k_weight: one for
    each stream or none, [D], or [H * D] if across_heads. cos, sin: of each stream, as for `rotary`, from
    its token seq_start[i] on; a table of no rows leaves the stream normalised only. Returns [B, sum(Si),
    Hq, D], and the same of k, of out_dtype and contiguous.
    """
    results = []
    for streams, weights, eps in ((q, q_weight, q_eps), (k, k_weight, k_eps)):
        parts = []
        for i, x in enumerate(streams):
            y = _normed(
                x,
                weights[i] if weights else None,
                eps[i],
                across_heads,
                round_before_weight,
                round_after_norm,
            )
            parts.append(
                one.rotated(y, cos[i], sin[i], interleaved, width, conjugate, seq_start[i]).to(out_dtype)
            )
        if parts:
            results.append(torch.cat(parts, dim=1).contiguous())
    return results


def _normed(
    x: Tensor, weight: Tensor | None, eps: float, across_heads: bool, round_before: bool, round_after: bool
) -> Tensor:
    dims = (-2, -1) if across_heads else (-1,)
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(dims, keepdim=True) + eps)
    if round_before:
        y = y.to(x.dtype).float()
    if weight is not None:
        y = y * weight.float().reshape(x.shape[-2:] if across_heads else x.shape[-1:])
    return y.to(x.dtype).float() if round_after else y


def fake(q: list[Tensor], k: list[Tensor], *rest: Any) -> list[Tensor]:
    return [_joint(streams, rest[-1]) for streams in (q, k) if streams]


def _joint(streams: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    batch, _, heads, channels = streams[0].shape
    tokens = sum(s.shape[1] for s in streams)
    return torch.empty((batch, tokens, heads, channels), dtype=dtype, device=streams[0].device)


def _triton(
    q: list[Tensor],
    k: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: list[Tensor],
    sin: list[Tensor],
    seq_start: list[int],
    q_eps: list[float],
    k_eps: list[float],
    across_heads: bool,
    round_before_weight: bool,
    round_after_norm: bool,
    interleaved: bool,
    width: int,
    conjugate: bool,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    from rocm_passes.kernels.triton.rotary.qk_norm_rotary import qk_norm_rotary

    out_q, out_k = _joint(q, out_dtype), _joint(k, out_dtype) if k else None
    begin = 0
    for i, x in enumerate(q):
        tokens = x.shape[1]
        qk_norm_rotary(
            x,
            k[i] if k else None,
            cos[i],
            sin[i],
            interleaved=interleaved,
            eps_q=q_eps[i],
            eps_k=k_eps[i] if k else None,
            across_heads=across_heads,
            q_weight=q_weight[i] if q_weight else None,
            k_weight=k_weight[i] if k_weight else None,
            round_before_weight=round_before_weight,
            round_after_norm=round_after_norm,
            rotary_dim=width,
            conjugate=conjugate,
            seq_start=seq_start[i],
            out_q=out_q.narrow(1, begin, tokens),
            out_k=None if out_k is None else out_k.narrow(1, begin, tokens),
        )
        begin += tokens
    return [out_q] if out_k is None else [out_q, out_k]


def _aiter(
    q: list[Tensor],
    k: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: list[Tensor],
    sin: list[Tensor],
    seq_start: list[int],
    q_eps: list[float],
    k_eps: list[float],
    across_heads: bool,
    round_before_weight: bool,
    round_after_norm: bool,
    interleaved: bool,
    width: int,
    conjugate: bool,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    from rocm_passes.kernels.aiter.qk_norm_rotary import qk_norm_rotary

    return list(
        qk_norm_rotary(
            q[0],
            k[0],
            q_weight[0],
            k_weight[0],
            cos[0],
            sin[0],
            q_eps[0],
            interleaved=interleaved,
            round_before_weight=round_before_weight,
        )
    )


@dataclass(frozen=True)
class Norm:
    """How the norm of a tensor is spelled: the views between its input and the rotation's, and its eps."""

    views: tuple[tuple[Any, tuple[Any, ...]], ...]
    recipe: Recipe
    eps: float


@dataclass(frozen=True)
class Streams:
    """What was read off the graph, without its nodes.

    q, k: the norm of each stream, with the recipe that brings it to [B, S, H, D]. rows: for each stream the
    part of its table set's tokens that are its own: (set, first, end), None for all, or no set where the
    stream is not rotated. tables: the recipe of each table set. q_out, k_out: how the joint result becomes
    the graph's.
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


def call(
    b: Any,
    q: Sequence[Any],
    k: Sequence[Any],
    q_weight: Sequence[Any],
    k_weight: Sequence[Any],
    tables: Sequence[Sequence[Any]],
    streams: Streams,
    contiguous: bool = False,
) -> dict[str, Any]:
    """The operator's arguments, with every view and table written."""
    sets = [one.tables_of(b, t, recipe, contiguous) for t, recipe in zip(tables, streams.tables, strict=True)]
    cos: list[Any] = []
    sin: list[Any] = []
    starts: list[int] = []
    for which, first, end in streams.rows:
        for target, table in ((cos, 0), (sin, 1)):
            target.append(_rows(b, sets[which or 0][table], (0, 0) if which is None else (first, end)))
        starts.append(0 if which is None else streams.tables[which].seq_start or 0)
    rotation = streams.rotation
    return {
        "q": [_heads(b, x, norm) for x, norm in zip(q, streams.q, strict=True)],
        "k": [_heads(b, x, norm) for x, norm in zip(k, streams.k, strict=True)],
        "q_weight": [_vector(b, w) for w in q_weight],
        "k_weight": [_vector(b, w) for w in k_weight],
        "cos": cos,
        "sin": sin,
        "seq_start": starts,
        "q_eps": [norm.eps for norm in streams.q],
        "k_eps": [norm.eps for norm in streams.k],
        "across_heads": streams.across_heads,
        "round_before_weight": streams.round_before_weight,
        "round_after_norm": streams.round_after_norm,
        "interleaved": rotation.interleaved,
        "width": rotation.width // rotation.heads,
        "conjugate": rotation.conjugate,
        "out_dtype": streams.q_out[0].out_dtype,
    }


def _rows(b: Any, table: Any, rows: tuple[int | None, int | None]) -> Any:
    return table if rows == (None, None) else reuse(b, aten.slice.Tensor, table, 1, *rows)


def _heads(b: Any, x: Any, norm: Norm) -> Any:
    for target, rest in norm.views:
        x = b(target, x, *rest)
    return layout.bshd(b, x, norm.recipe)


def _vector(b: Any, weight: Any) -> Any:
    return weight if len(b.value(weight).shape) == 1 else b(aten.reshape.default, weight, [-1])


def writes(name: str) -> Callable[..., Any]:
    def write(b: Any, streams: Streams, **arguments: Any) -> Any:
        written = call(b, streams=streams, contiguous=name == "aiter", **arguments)
        joint = OPERATOR.write(b, OPERATOR.Call(**written), name)
        outs = [out for out in (streams.q_out, streams.k_out) if out is not None]
        return [layout.original(b, joint if len(outs) == 1 else joint[i], *out) for i, out in enumerate(outs)]

    return write


def _triton_refuses(streams: Streams, **arguments: Any) -> str | None:
    if any(recipe.fp64 for recipe in streams.tables):
        return "the graph rotates in float64 (rewrite_numerics='fast' allows float32)"
    a = call(Eager(), streams=streams, **arguments)
    first = a["q"][0]
    floats = (torch.float32, torch.float16, torch.bfloat16)
    for x in (*a["q"], *a["k"], *a["q_weight"], *a["k_weight"], *a["cos"], *a["sin"]):
        if x.dtype not in floats:
            return f"an input is {x.dtype}"
    if a["out_dtype"] not in floats:
        return f"the result is {a['out_dtype']}"
    for name, tensors in (("q", a["q"]), ("k", a["k"])):
        for i, x in enumerate(tensors):
            if not isinstance(x.shape[2], int) or not isinstance(x.shape[3], int):
                return "the number of heads or of channels is symbolic"
            if not n.same_shape(x.shape[::3], first.shape[::3]) or x.dtype is not first.dtype:
                return f"{name} is {list(x.shape)} of {x.dtype} and q {list(first.shape)} of {first.dtype}"
            own = (a["q"][i].shape[1], tensors[0].shape[2])
            if not n.same_shape(x.shape[1:3], own):
                return f"{name} is {list(x.shape)} and q {list(a['q'][i].shape)}"
            if streams.across_heads and _padded(x.shape[2]) * _padded(x.shape[3]) > MAX_ROW:
                return (
                    f"a norm over {x.shape[2]} heads of {x.shape[3]} channels is more than the kernel holds"
                )
    return _tables_misfit(a, streams)


def _tables_misfit(a: dict[str, Any], streams: Streams) -> str | None:
    for i, (cos, sin) in enumerate(zip(a["cos"], a["sin"], strict=True)):
        q = a["q"][i]
        if not n.same_shape(cos.shape, sin.shape):
            return f"cos is {list(cos.shape)} and sin {list(sin.shape)}"
        if not n.same_size(cos.shape[0], 1) and not n.same_size(cos.shape[0], q.shape[0]):
            return f"the tables are for {cos.shape[0]} samples and q has {q.shape[0]}"
        heads = cos.shape[2]
        if not n.same_size(heads, 1) and not all(n.same_size(heads, x.shape[2]) for x in (*a["q"], *a["k"])):
            return f"the tables are for {cos.shape[2]} heads and q has {q.shape[2]}"
        which = streams.rows[i][0]
        partial = which is None or streams.tables[which].seq_start is not None
        if not partial and not n.same_size(cos.shape[1], q.shape[1]):
            return f"the tables are for {cos.shape[1]} tokens and q has {q.shape[1]}"
    return None


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _aiter_refuses(streams: Streams, **arguments: Any) -> str | None:
    from rocm_passes.kernels.aiter import qk_norm_rotary

    reason = _triton_refuses(streams, **arguments)
    if reason is not None:
        return reason
    a = call(Eager(), streams=streams, contiguous=True, **arguments)
    if len(a["q"]) != 1 or len(a["k"]) != 1:
        return "aiter's kernel takes one q and one k"
    if streams.across_heads:
        return "the norm runs over all heads, and aiter's over each"
    if not a["q_weight"] or not a["k_weight"]:
        return "the norm has no weight, and aiter's needs one"
    if a["q_eps"] != a["k_eps"]:
        return f"eps is {a['q_eps'][0]} for q and {a['k_eps'][0]} for k"
    if not streams.round_after_norm:
        return "the graph rotates the norm's result unrounded, and aiter's kernel rounds it"
    if a["width"] != a["q"][0].shape[3]:
        return "only some channels are rotated"
    mismatch = one.aiter_mismatch(streams.rotation, a["q"][0].dtype)
    if mismatch is not None:
        return mismatch
    return qk_norm_rotary.refusal(
        a["q"][0],
        a["k"][0],
        a["q_weight"][0],
        a["k_weight"][0],
        a["cos"][0],
        a["sin"][0],
        a["q_eps"][0],
        interleaved=a["interleaved"],
        round_before_weight=a["round_before_weight"],
    )


def _aiter_note(target: Target, q: Sequence[Tensor], **_: Any) -> str | None:
    from rocm_passes.kernels.aiter import qk_norm_rotary

    return qk_norm_rotary.numerics_note(q[0], arch=target.arch)


OPERATOR = Operator(
    "qk_norm_rotary",
    SCHEMA,
    reference,
    fake,
    lowerings=(Lowering("aiter", run=_aiter), Lowering("triton", run=_triton, launches=True)),
    results=(2, 1),
    count=lambda call: 2 if call.k else 1,
)

LOWERINGS = (
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.rotary.qk_norm_rotary")),
        refuses=_triton_refuses,
        write=writes("triton"),
    ),
    Lowering(
        "aiter",
        requires=(needs_aiter,),
        refuses=_aiter_refuses,
        note=_aiter_note,
        write=writes("aiter"),
    ),
    Lowering(
        "reference",
        requires=(needs_cpu,),
        refuses=_triton_refuses,
        write=writes("reference"),
    ),
)
