"""Rotary position embedding of q and k in one launch, optionally after an RMSNorm.

For a pair of channels (x1, x2) with angles given by tables:

    out1 = x1 * cos1 - x2 * sin1
    out2 = x2 * cos2 + x1 * sin2

in fp32 whatever the dtypes, rounded once on store. Tables of half the rotary width hold one value
per pair; tables of the whole width hold one per channel, and the two of a pair may differ. Where an
eager graph multiplies in bf16 (tables and tensor both bf16), this is nearer to the exact result
than the graph; compiled Inductor computes as done here.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton kernels carry no Python types: their arguments are device values.)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import inverse_rms
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.rotary.rotary_tiles import (
    Tables,
    check_input,
    check_rotary_dim,
    check_seq_start,
    load_pairs,
    load_rest,
    load_tables,
    normalise,
    output_like,
    prepare_tables,
    rotate,
    store_pairs,
    store_rest,
    tile_shape,
)


@triton.jit
def _head_tile(
    x_ptr, x_stride_b, x_stride_s, x_stride_h,
    out_ptr, out_stride_b, out_stride_s, out_stride_h,
    cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
    weight_ptr, batch, token_block, head_block, tokens, table_start, table_tokens,
    HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONJUGATE: tl.constexpr, PER_CHANNEL: tl.constexpr,
    PER_HEAD: tl.constexpr,
    PARTIAL: tl.constexpr, NORM: tl.constexpr, ACROSS_HEADS: tl.constexpr, EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr, ROUND_AFTER: tl.constexpr,
):  # fmt: skip
    """Normalises (if NORM) and rotates T tokens by H heads of one tensor; all heads if
    ACROSS_HEADS.
    """
    token = (token_block * T + tl.arange(0, T)).to(tl.int64)[:, None, None]
    head = (head_block * H + tl.arange(0, H)).to(tl.int64)[None, :, None]
    mask = (token < tokens) & (head < HEADS)
    x_rows = batch * x_stride_b + token * x_stride_s + head * x_stride_h
    out_rows = batch * out_stride_b + token * out_stride_s + head * out_stride_h
    table_token = token - table_start
    in_table = (table_token >= 0) & (table_token < table_tokens)
    table_row = batch * table_stride_b + table_token * table_stride_s

    first, second = load_pairs(x_ptr, x_rows, mask, 1, R, P, T, H, INTERLEAVED)
    cos1, cos2, sin1, sin2 = load_tables(
        cos_ptr, sin_ptr, table_row, in_table, head, table_stride_h, table_stride_f, HEADS, R, P,
        T, H,
        INTERLEAVED, PER_CHANNEL, PER_HEAD,
    )  # fmt: skip
    dtype = x_ptr.dtype.element_ty
    if REST_P > 0:
        rest = load_rest(x_ptr, x_rows, mask, R, D - R, REST_P)
    if NORM:
        weight1, weight2, weight3 = 1.0, 1.0, 1.0
        if HAS_WEIGHT:
            WEIGHT_H: tl.constexpr = H if ACROSS_HEADS else 1
            row = tl.arange(0, WEIGHT_H)[None, :, None]
            weight1, weight2 = load_pairs(
                weight_ptr, row * D, row < HEADS, 1, R, P, 1, WEIGHT_H, INTERLEAVED
            )
            if REST_P > 0:
                weight3 = load_rest(weight_ptr, row * D, row < HEADS, R, D - R, REST_P)
        squares = tl.sum(first * first + second * second, axis=2)
        if REST_P > 0:
            squares += tl.sum(rest * rest, axis=2)
        if ACROSS_HEADS:
            squares = tl.sum(squares, axis=1)[:, None]
        CHANNELS: tl.constexpr = HEADS * D if ACROSS_HEADS else D
        rstd = inverse_rms(squares, CHANNELS, EPS, out_ptr.dtype.element_ty, "add")[:, :, None]
        first = normalise(first, rstd, weight1, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER)
        second = normalise(
            second, rstd, weight2, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER
        )
        if REST_P > 0:
            rest = normalise(
                rest, rstd, weight3, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER
            )
    turned1, turned2 = rotate(first, second, cos1, cos2, sin1, sin2, CONJUGATE)
    if PARTIAL:
        turned1 = tl.where(in_table, turned1, first)
        turned2 = tl.where(in_table, turned2, second)
    store_pairs(out_ptr, out_rows, mask, turned1, turned2, R, P, T, H, INTERLEAVED)
    if REST_P > 0:
        store_rest(out_ptr, out_rows, mask, rest, R, D - R, REST_P)


@triton.jit
def rotary_heads_kernel(
    q_ptr, q_stride_b, q_stride_s, q_stride_h, q_out_ptr, q_out_stride_b, q_out_stride_s,
    q_out_stride_h,
    k_ptr, k_stride_b, k_stride_s, k_stride_h, k_out_ptr, k_out_stride_b, k_out_stride_s,
    k_out_stride_h,
    cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
    q_weight_ptr, k_weight_ptr, tokens, table_start, table_tokens,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr, T: tl.constexpr,
    H: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONJUGATE: tl.constexpr, PER_CHANNEL: tl.constexpr,
    PER_HEAD: tl.constexpr,
    PARTIAL: tl.constexpr, NORM: tl.constexpr, ACROSS_HEADS: tl.constexpr,
    Q_EPS: tl.constexpr, K_EPS: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr, ROUND_AFTER: tl.constexpr,
):  # fmt: skip
    """Samples, in each token blocks, in each the head blocks of q, then of k, sharing table rows.

    All on axis 0: the other axes of a grid end at 65535, and a batch may be larger.
    """
    Q_BLOCKS: tl.constexpr = (Q_HEADS + H - 1) // H
    K_BLOCKS: tl.constexpr = (K_HEADS + H - 1) // H
    token_blocks = (tokens + T - 1) // T
    block = tl.program_id(0) // (Q_BLOCKS + K_BLOCKS)
    head_block = tl.program_id(0) % (Q_BLOCKS + K_BLOCKS)
    token_block = block % token_blocks
    batch = (block // token_blocks).to(tl.int64)
    # A tensor without heads has no branch: a norm over none of them does not compile.
    if Q_BLOCKS > 0 and head_block < Q_BLOCKS:
        _head_tile(
            q_ptr, q_stride_b, q_stride_s, q_stride_h,
            q_out_ptr, q_out_stride_b, q_out_stride_s, q_out_stride_h,
            cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
            q_weight_ptr, batch, token_block, head_block, tokens, table_start, table_tokens,
            Q_HEADS, D, R, P, REST_P, T, H, INTERLEAVED, CONJUGATE, PER_CHANNEL, PER_HEAD,
            PARTIAL, NORM, ACROSS_HEADS, Q_EPS, HAS_Q_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
        )  # fmt: skip
    if K_BLOCKS > 0 and head_block >= Q_BLOCKS:
        _head_tile(
            k_ptr, k_stride_b, k_stride_s, k_stride_h,
            k_out_ptr, k_out_stride_b, k_out_stride_s, k_out_stride_h,
            cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
            k_weight_ptr, batch, token_block, head_block - Q_BLOCKS, tokens, table_start,
            table_tokens,
            K_HEADS, D, R, P, REST_P, T, H, INTERLEAVED, CONJUGATE, PER_CHANNEL, PER_HEAD,
            PARTIAL, NORM, ACROSS_HEADS, K_EPS, HAS_K_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
        )  # fmt: skip


@dataclass(frozen=True)
class Rotation:
    """How tables turn the channels of a head.

    interleaved: pairs are (2i, 2i+1), otherwise (i, i + R/2).
    rotary_dim: the first so many channels are rotated, all by default; the others are copied.
    conjugate: rotate by minus the angles (the backward of the rotation).
    seq_start: the token that the tables' first row belongs to; tokens outside the tables are
    copied.
    """

    interleaved: bool
    rotary_dim: int | None = None
    conjugate: bool = False
    seq_start: int | None = None


@dataclass(frozen=True)
class HeadNorms:
    """The RMSNorms of q and k in front of the rotation. Statistics and products are fp32.

    across_heads: one mean over the H * D channels of a token, weights [H*D]; else one per head,
    weights [D].
    round_before_weight: x * rstd is rounded to x's dtype before the weight multiplies it (as
    diffusers does).
    round_after_norm: the normalised value is rounded to x's dtype before the rotation.
    """

    eps_q: float = 0.0
    eps_k: float = 0.0
    across_heads: bool = False
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    round_before_weight: bool = False
    round_after_norm: bool = True


def rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    rotation: Rotation,
    *,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rotates x.

    x: [B, S, H, D], D even or not, fp32/fp16/bf16, any strides; a channel stride other than 1 costs
    a copy. cos, sin: [1 or B, S, 1 or H, R/2 or R], fp32/fp16/bf16, any strides. Returns [B, S, H,
    D] in `out_dtype` (x's by default), dense, in x's memory order; or `out`, which may have any
    strides with unit channel stride. Raises TypeError for other dtypes (fp64 and complex among
    them), ValueError for shapes that do not fit.
    """
    return launch_heads(x, None, cos, sin, rotation, out_dtype=out_dtype, outs=(out, None))[0]


def rotary_pair(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    rotation: Rotation,
    *,
    out_dtype: torch.dtype | None = None,
    outs: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """`rotary` of q [B, S, Hq, D] and k [B, S, Hk, D] with the same tables in one launch."""
    turned_q, turned_k = launch_heads(q, k, cos, sin, rotation, out_dtype=out_dtype, outs=outs)
    assert turned_k is not None
    return turned_q, turned_k


def launch_heads(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    rotation: Rotation,
    *,
    norms: HeadNorms | None = None,
    out_dtype: torch.dtype | None = None,
    outs: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor | None]:
    """Checks the arguments and launches the kernel. Weights are contiguous, [D], or [H*D] if
    across_heads.
    """
    q, k, tables, width, start = check_pair(q, k, cos, sin, rotation.rotary_dim, rotation.seq_start)
    batch, tokens, q_heads, channels = q.shape
    k_heads = 0 if k is None else k.shape[2]
    q_out = output_like(q, outs[0], out_dtype)
    k_out = None if k is None else output_like(k, outs[1], out_dtype)
    if batch * tokens == 0 or q_heads + k_heads == 0:
        return q_out, k_out
    n = norms or HeadNorms()
    head_counts = tuple(h for h in (q_heads, k_heads) if h)
    token_tile, head_tile, warps = tile_shape(
        head_counts, channels, norms is not None, n.across_heads
    )
    blocks = (
        batch
        * triton.cdiv(tokens, token_tile)
        * sum(triton.cdiv(h, head_tile) for h in head_counts)
    )
    second, second_out = (q, q_out) if k is None or k_out is None else (k, k_out)
    launch(
        rotary_heads_kernel, (blocks,),
        q, *q.stride()[:3], q_out, *q_out.stride()[:3],
        second, *second.stride()[:3], second_out, *second_out.stride()[:3],
        tables.cos, tables.sin, *tables.strides, n.q_weight, n.k_weight,
        tokens, start, tables.tokens,
        Q_HEADS=q_heads, K_HEADS=k_heads, D=channels, R=width, P=triton.next_power_of_2(width // 2),
        REST_P=triton.next_power_of_2(channels - width) if channels > width else 0,
        T=token_tile, H=head_tile, INTERLEAVED=rotation.interleaved, CONJUGATE=rotation.conjugate,
        PER_CHANNEL=tables.per_channel, PER_HEAD=tables.per_head,
        PARTIAL=tables.tokens != tokens, NORM=norms is not None, ACROSS_HEADS=n.across_heads,
        Q_EPS=n.eps_q, K_EPS=n.eps_k,
        HAS_Q_WEIGHT=n.q_weight is not None, HAS_K_WEIGHT=n.k_weight is not None,
        ROUND_BEFORE_WEIGHT=n.round_before_weight, ROUND_AFTER=n.round_after_norm, num_warps=warps,
    )  # fmt: skip
    return q_out, k_out


def check_pair(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    rotary_dim: int | None,
    seq_start: int | None,
) -> tuple[Tensor, Tensor | None, Tables, int, int]:
    """q, k and tables as the kernels take them, the rotary width, and the token of the tables'
    first row.
    """
    q = check_input("q", q)
    heads = {q.shape[2]}
    if k is not None:
        k = check_input("k", k)
        if (k.shape[0], k.shape[1], k.shape[3]) != (q.shape[0], q.shape[1], q.shape[3]):
            raise ValueError(
                f"q {tuple(q.shape)} and k {tuple(k.shape)} may differ in their head count only"
            )
        heads.add(k.shape[2])
    devices = {t.device for t in (q, k, cos, sin) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"q, k and the tables lie on several devices: {sorted(map(str, devices))}")
    width = check_rotary_dim(rotary_dim, q.shape[3])
    tables = prepare_tables(cos, sin, q.shape[0], heads, width)
    return q, k, tables, width, check_seq_start(seq_start, tables, q.shape[1])
