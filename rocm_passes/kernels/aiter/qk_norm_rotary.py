"""RMSNorm per head and rotation of q and k in one kernel, through aiter's
`fused_qk_norm_rope_1way`.

    n = round(round(x · rsqrt(mean(x²) + eps)) · weight),   then rotated in float32 and rounded

Source: aiter/ops/fused_qk_norm_rope_cache_quant.py and its .cu. Before 0.1.17 it reads its
table out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aiter import contract, installation
from rocm_passes.kernels.aiter.rotary import table_violations, unlike_aiters
from rocm_passes.ops import qk_norm_rotary as op
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target

HEAD_SIZES = (64, 128, 256)
# The kernel's widest loads spread one head over 16 lanes.
LANES = 16
GRID_Y_MAX = 65535


@dataclass(frozen=True)
class Arguments:
    """q [B, S, H, D] and k [B, S, H', D], each normalised over D with its weight [D], then rotated
    whole.

    q, k and the weights are contiguous and of one dtype, float16 or bfloat16; cos and sin are [1,
    S, 1, D/2]. `round_before_weight` says where the graph's norm rounds; aiter's does so before and
    after the weight.
    """

    q: Tensor
    k: Tensor
    wq: Tensor
    wk: Tensor
    cos: Tensor
    sin: Tensor
    eps: float
    interleaved: bool
    round_before_weight: bool


def qk_norm_rotary(given: Arguments) -> tuple[Tensor, Tensor]:
    """Returns fresh contiguous tensors. Raises AiterContractError instead of calling aiter with
    what it does not take.
    """
    contract.enforce("fused_qk_norm_rope_1way", refusal(given))
    q, k = given.q, given.k
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    if q.numel() == 0:
        return out_q, out_k
    from aiter.ops.fused_qk_norm_rope_cache_quant import fused_qk_norm_rope_1way

    batch, tokens, heads_q, head_size = q.shape
    with contract.device_guard(q):
        table = prepare_table(given.cos, given.sin)
        fused_qk_norm_rope_1way(
            *(q, k, given.wq, given.wk, table, batch, tokens, heads_q, k.shape[2], head_size),
            *(given.interleaved, given.eps, out_q, out_k),
        )
    return out_q, out_k


def prepare_table(cos: Tensor, sin: Tensor) -> Tensor:
    """The tables [1, S, 1, D/2] as aiter reads them: one of [S, D] in float32, cosines before
    sines.
    """
    return torch.cat([cos.to(torch.float32), sin.to(torch.float32)], dim=-1).reshape(
        cos.shape[1], -1
    )


def refusal(given: Arguments) -> str | None:
    """Why `qk_norm_rotary` can not take this call; None if it can."""
    return next(_violations(given), None)


def numerics_note(q: Tensor) -> str | None:
    """Where `qk_norm_rotary` computes otherwise than the graph did; None if nowhere."""
    return contract.joined(contract.denormal_note(q.dtype))


def _violations(given: Arguments) -> Iterator[str]:
    yield from contract.available("fused_qk_norm_rope_1way")
    found = installation.find()
    if "opus" not in found.features and not found.at_least(0, 1, 17):
        version = found.version or "of unknown version"
        yield (
            f"aiter {version} reads the rotation table out of bounds here: 0.1.17 or newer is "
            "needed"
        )
    q, k, cos, sin = given.q, given.k, given.cos, given.sin
    weights = {"wq": given.wq, "wk": given.wk}
    yield from contract.placement({"q": q, "k": k, **weights, "cos": cos, "sin": sin})
    yield from contract.kept_stores(contract.architecture(q.device))
    if not given.round_before_weight:
        yield (
            "the graph multiplies by the weight before it rounds: aiter's fused kernel rounds twice"
        )
    yield from contract.dtype("q", q, contract.HALF_DTYPES)
    yield from contract.same_dtype("k", k, "q", q)
    yield from _shape_violations(q, k)
    for name, weight in weights.items():
        yield from contract.vector(name, weight, q.shape[3], "q", q)
    yield from table_violations(cos, sin, q.shape[1])
    if cos.shape[3] * 2 != q.shape[3]:
        yield (
            f"the tables have {cos.shape[3]} entries per token: aiter wants half the head size "
            f"{q.shape[3]}"
        )
    for name, t in {"q": q, "k": k, **weights}.items():
        yield from _layout_violations(name, t, q.shape[3] // LANES)


def _shape_violations(q: Tensor, k: Tensor) -> Iterator[str]:
    for name, t in (("q", q), ("k", k)):
        if t.dim() != 4:
            yield f"{name} has {t.dim()} dimensions: aiter wants [B, S, H, D]"
    if (q.shape[0], q.shape[1], q.shape[3]) != (k.shape[0], k.shape[1], k.shape[3]):
        shapes = f"{contract.shape_name(k)} and q {contract.shape_name(q)}"
        yield f"k has shape {shapes}: aiter goes by q's for both"
    if 0 in (q.shape[2], k.shape[2]):
        yield f"q has {q.shape[2]} heads and k {k.shape[2]}: aiter wants at least one of each"
    if q.shape[3] not in HEAD_SIZES:
        yield f"head size {q.shape[3]}: aiter takes {', '.join(map(str, HEAD_SIZES))} only"
    if q.shape[0] > GRID_Y_MAX:
        yield f"batch size {q.shape[0]}: aiter's grid ends at {GRID_Y_MAX}"


def _layout_violations(name: str, t: Tensor, vector: int) -> Iterator[str]:
    if not t.is_contiguous():
        yield f"{name} has strides {tuple(t.stride())}: aiter reads it as contiguous"
    if t.storage_offset() % vector:
        offset = t.storage_offset()
        yield f"{name} begins at element {offset}: aiter's vector loads want a multiple of {vector}"
    yield from contract.within_int32(name, t)


def _refuses(call: op.SpelledQkNormRotary, target: Target) -> str | None:
    reason = op.refuses(call, target)
    if reason is not None:
        return reason
    own = replace(call, contiguous=True).prepared(Eager())
    reason = _unlike_aiters(own) or unlike_aiters(call.streams.rotation, own.q[0].dtype)
    return reason or refusal(_only(own))


def _unlike_aiters(own: op.QkNormRotary) -> str | None:
    """What of the norms aiter's kernel has not, or None."""
    if len(own.q) != 1 or len(own.k) != 1:
        return "aiter's kernel takes one q and one k"
    if own.across_heads:
        return "the norm runs over all heads, and aiter's over each"
    if not own.q_weight or not own.k_weight:
        return "the norm has no weight, and aiter's needs one"
    if own.q_eps != own.k_eps:
        return f"eps is {own.q_eps[0]} for q and {own.k_eps[0]} for k"
    if not own.round_after_norm:
        return "the graph rotates the norm's result unrounded, and aiter's kernel rounds it"
    if own.width != own.q[0].shape[3]:
        return "only some channels are rotated"
    return None


def _only(own: op.QkNormRotary) -> Arguments:
    """The arguments of aiter's kernel, from a call with one q and one k."""
    return Arguments(
        own.q[0],
        own.k[0],
        own.q_weight[0],
        own.k_weight[0],
        own.cos[0],
        own.sin[0],
        own.q_eps[0],
        own.interleaved,
        own.round_before_weight,
    )


def _note(call: op.SpelledQkNormRotary, target: Target) -> str | None:
    return numerics_note(call.q[0])


def _write(b: Any, call: op.SpelledQkNormRotary) -> Any:
    return op.QK_NORM_ROTARY.write(b, replace(call, contiguous=True), AITER.name)


def _run(call: op.QkNormRotary) -> Sequence[Tensor]:
    return qk_norm_rotary(_only(call))


AITER = op.QK_NORM_ROTARY.register(
    Lowering(
        "aiter",
        requires=(installation.needs_aiter,),
        refuses=_refuses,
        note=_note,
        run=_run,
        write=_write,
    )
)
