"""Rotary position embedding of q and k by the same tables, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops import rotary as one
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.legacy import Lowering, Operator
from rocm_passes.ops.operator import Verdict, needs_cpu, reference_pays
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target, needs_import, needs_triton

SCHEMA = (
    "(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, int width, bool conjugate, "
    "int? seq_start, ScalarType out_dtype) -> (Tensor, Tensor)"
)


def reference(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`rotary` of q [B, S, Hq, D] and of k [B, S, Hk, D]."""
    rest = (cos, sin, interleaved, width, conjugate, seq_start, out_dtype)
    return one.reference(q, *rest), one.reference(k, *rest)


def fake(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    rest = (cos, sin, interleaved, width, conjugate, seq_start, out_dtype)
    return one.fake(q, *rest), one.fake(k, *rest)


def _triton(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from rocm_passes.kernels.triton.rotary import rotary

    out_q, out_k = (torch.empty(x.shape, dtype=out_dtype, device=x.device) for x in (q, k))
    return rotary.rotary_pair(
        q,
        k,
        cos,
        sin,
        interleaved=interleaved,
        rotary_dim=width,
        conjugate=conjugate,
        seq_start=seq_start,
        out_q=out_q,
        out_k=out_k,
    )


def _aiter(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    width: int,
    conjugate: bool,
    seq_start: int | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from rocm_passes.kernels.aiter import rotary

    return rotary.rotary_pair(q, k, cos, sin, interleaved=interleaved, rotated=width)


# What the idiom's lowerings write. Each takes q, k, tables (of cos1, sin1, cos2, sin2) and a Recipe of each.


def writes(name: str) -> Callable[..., Any]:
    def write(b: Any, q: Any, k: Any, tables: Sequence[Any], recipe: Recipe, k_recipe: Recipe) -> Any:
        a = one.call(q, tables, recipe, b, contiguous=name == "aiter")
        k4 = layout.bshd(b, k, k_recipe)
        rest = [a[p] for p in one.OPERATOR.parameters[1:]]
        both = b(OPERATOR.overload, a["x"], k4, *rest, name)
        return [
            layout.original(b, b.item(both, i), r, tuple(r.view if r.view is not None else b.value(x).shape))
            for i, (x, r) in enumerate(((q, recipe), (k, k_recipe)))
        ]

    return write


def _triton_refuses(
    q: Tensor, k: Tensor, tables: Sequence[Tensor], recipe: Recipe, k_recipe: Recipe
) -> str | None:
    for name, x, r in (("q", q, recipe), ("k", k, k_recipe)):
        reason = one.problem(x, tables, r)
        if reason is not None:
            return f"{name}: {reason}"
    q4, k4 = layout.bshd(Eager(), q, recipe), layout.bshd(Eager(), k, k_recipe)
    of_one = ((*x.shape[:2], x.shape[3]) for x in (q4, k4))
    if not n.same_shape(*of_one) or q.dtype is not k.dtype:
        return f"q is {list(q4.shape)} of {q.dtype} and k {list(k4.shape)} of {k.dtype}"
    if recipe.out_dtype is not k_recipe.out_dtype:
        return f"the results are {recipe.out_dtype} and {k_recipe.out_dtype}"
    return None


def _aiter_refuses(
    q: Tensor, k: Tensor, tables: Sequence[Tensor], recipe: Recipe, k_recipe: Recipe
) -> str | None:
    from rocm_passes.kernels.aiter import rotary

    reason = _triton_refuses(q, k, tables, recipe, k_recipe) or one.aiter_mismatch(recipe, q.dtype)
    if reason is not None:
        return reason
    a = one.call(q, tables, recipe, Eager(), contiguous=True)
    k4 = layout.bshd(Eager(), k, k_recipe)
    return rotary.pair_refusal(
        a["x"], k4, a["cos"], a["sin"], interleaved=a["interleaved"], rotated=a["width"]
    )


def _aiter_note(target: Target, q: Tensor, **_: Any) -> str | None:
    from rocm_passes.kernels.aiter import rotary

    return rotary.numerics_note(q, arch=target.arch)


def _triton_pays(target: Target, q: Tensor, tables: Sequence[Tensor], recipe: Recipe, **_: Any) -> Verdict:
    return one.kernel_pays(target, q, tables, recipe, launched=True)


def _aiter_pays(target: Target, q: Tensor, tables: Sequence[Tensor], recipe: Recipe, **_: Any) -> Verdict:
    return one.kernel_pays(target, q, tables, recipe, launched=False)


OPERATOR = Operator(
    "rotary_pair",
    SCHEMA,
    reference,
    fake,
    lowerings=(Lowering("aiter", run=_aiter), Lowering("triton", run=_triton, launches=True)),
    results=(2,),
    count=lambda call: 2,
)

LOWERINGS = (
    Lowering(
        "aiter",
        requires=(needs_aiter,),
        refuses=_aiter_refuses,
        note=_aiter_note,
        pays=_aiter_pays,
        write=writes("aiter"),
    ),
    Lowering(
        "triton",
        requires=(needs_triton, needs_import("rocm_passes.kernels.triton.rotary.rotary")),
        refuses=_triton_refuses,
        pays=_triton_pays,
        write=writes("triton"),
    ),
    Lowering(
        "reference",
        requires=(needs_cpu,),
        refuses=_triton_refuses,
        pays=reference_pays,
        write=writes("reference"),
    ),
)
