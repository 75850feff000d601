"""RMSNorm per head and rotation of q and k in one kernel, through aiter's `fused_qk_norm_rope_1way`.

    n = round(round(x · rsqrt(mean(x²) + eps)) · weight),   then rotated in float32 and rounded

Source: aiter/ops/fused_qk_norm_rope_cache_quant.py and its .cu. Before 0.1.17 it reads its
table out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rocm_passes.kernels.aiter import contract, installation
from rocm_passes.kernels.aiter.rotary import table_violations

HEAD_SIZES = (64, 128, 256)
# The kernel's widest loads spread one head over 16 lanes.
LANES = 16
GRID_Y_MAX = 65535


def qk_norm_rotary(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    interleaved: bool,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    """q [B, S, H, D] and k [B, S, H', D], each normalised over D with its weight [D], then rotated whole.

    q, k and the weights are contiguous and of one dtype, float16 or bfloat16; cos and sin are [1, S, 1, D/2].
    `round_before_weight` says where the graph's norm rounds; aiter's does so before and after the weight.
    Returns fresh contiguous tensors. Raises AiterContractError instead of calling aiter with what it does not
    take.
    """
    reason = refusal(
        q, k, wq, wk, cos, sin, eps, interleaved=interleaved, round_before_weight=round_before_weight
    )
    contract.enforce("fused_qk_norm_rope_1way", reason)
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    if q.numel() == 0:
        return out_q, out_k
    from aiter.ops.fused_qk_norm_rope_cache_quant import fused_qk_norm_rope_1way

    batch, tokens, heads_q, head_size = q.shape
    with contract.device_guard(q):
        table = prepare_table(cos, sin)
        fused_qk_norm_rope_1way(
            *(q, k, wq, wk, table, batch, tokens, heads_q, k.shape[2], head_size),
            *(interleaved, eps, out_q, out_k),
        )
    return out_q, out_k


def prepare_table(cos: Tensor, sin: Tensor) -> Tensor:
    """The tables [1, S, 1, D/2] as aiter reads them: one of [S, D] in float32, cosines before sines."""
    return torch.cat([cos.to(torch.float32), sin.to(torch.float32)], dim=-1).reshape(cos.shape[1], -1)


def refusal(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    interleaved: bool,
    round_before_weight: bool,
) -> str | None:
    """Why `qk_norm_rotary` can not take this call; None if it can."""
    return next(_violations(q, k, wq, wk, cos, sin, round_before_weight), None)


def numerics_note(q: Tensor, *, arch: str | None = None) -> str | None:
    """Where `qk_norm_rotary` computes otherwise than the graph did; None if nowhere."""
    return contract.joined(contract.denormal_note(q.dtype))


def _violations(
    q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor, round_before_weight: bool
) -> Iterator[str]:
    yield from contract.available("fused_qk_norm_rope_1way")
    found = installation.find()
    if "opus" not in found.features and not found.at_least(0, 1, 17):
        version = found.version or "of unknown version"
        yield f"aiter {version} reads the rotation table out of bounds here: 0.1.17 or newer is needed"
    yield from contract.placement({"q": q, "k": k, "wq": wq, "wk": wk, "cos": cos, "sin": sin})
    if not round_before_weight:
        yield "the graph multiplies by the weight before it rounds: aiter's fused kernel rounds twice"
    yield from contract.dtype("q", q, contract.HALF_DTYPES)
    yield from contract.same_dtype("k", k, "q", q)
    yield from _shape_violations(q, k)
    for name, weight in (("wq", wq), ("wk", wk)):
        yield from contract.vector(name, weight, q.shape[3], "q", q)
    yield from table_violations(cos, sin, q.shape[1])
    if cos.shape[3] * 2 != q.shape[3]:
        yield f"the tables have {cos.shape[3]} entries per token: aiter wants half the head size {q.shape[3]}"
    for name, t in (("q", q), ("k", k), ("wq", wq), ("wk", wk)):
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
