"""RMSNorm of q and k, over each head or over all heads together, followed by the rotation, in one launch.

    before   mean(x * x) -> + eps -> rsqrt -> x * . -> * weight -> rotation      (for q and for k)
    after    qk_norm_rotary(q, k, cos, sin, ...)

The norm over all heads (Wan, LTX) needs the whole row of H * D channels before any of it can be rotated. One
program holds it in registers: a power of two of heads and, where that leaves some, a second tile for them.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton kernels carry no Python types: their arguments are device values.)

import torch
import triton
import triton.language as tl

from .common import IsaExample, device_guard, isa_example
from .rotary import check_pair, launch_heads
from .rotary_tiles import (
    FLOAT_DTYPES,
    inverse_rms,
    load_pairs,
    load_rest,
    load_tables,
    normalise,
    output_like,
    rotate,
    store_pairs,
    store_rest,
)

# The widest row of H * D channels held in registers.
MAX_ROW = 32768


@triton.jit
def _load_heads(
    ptr, offset, stride_h, head, HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    REST_P: tl.constexpr, H: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Pairs and rest of the given heads of one token; the rest is 0.0 where every channel rotates."""
    rows = offset + head * stride_h
    mask = head < HEADS
    first, second = load_pairs(ptr, rows, mask, 1, R, P, 1, H, INTERLEAVED)
    if REST_P > 0:
        rest = load_rest(ptr, rows, mask, R, D - R, REST_P)
    else:
        rest = 0.0
    return first, second, rest


@triton.jit
def _load_weight(
    ptr, head, HAS_WEIGHT: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr,
    H: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The weights of the given heads, or 1.0."""
    if HAS_WEIGHT:
        first, second, rest = _load_heads(
            ptr, 0, D, head.to(tl.int32), HEADS, D, R, P, REST_P, H, INTERLEAVED
        )
    else:
        first, second, rest = 1.0, 1.0, 1.0
    return first, second, rest


@triton.jit
def _sum_squares(first, second, rest, REST_P: tl.constexpr):
    total = tl.sum(tl.sum(first * first + second * second, axis=2), axis=1)
    if REST_P > 0:
        total += tl.sum(tl.sum(rest * rest, axis=2), axis=1)
    return total


@triton.jit
def _finish_heads(
    first, second, rest, weight1, weight2, weight3, rstd, cos1, cos2, sin1, sin2, in_table,
    head, dtype, out_ptr, out_offset, out_stride_h,
    HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr,
    H: tl.constexpr, INTERLEAVED: tl.constexpr, CONJUGATE: tl.constexpr, PARTIAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, ROUND_BEFORE_WEIGHT: tl.constexpr, ROUND_AFTER: tl.constexpr,
):  # fmt: skip
    """Scales, rotates and stores the given heads of one token."""
    mask = head < HEADS
    first = normalise(first, rstd, weight1, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER)
    second = normalise(second, rstd, weight2, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER)
    turned1, turned2 = rotate(first, second, cos1, cos2, sin1, sin2, CONJUGATE)
    if PARTIAL:
        turned1 = tl.where(in_table, turned1, first)
        turned2 = tl.where(in_table, turned2, second)
    out_rows = out_offset + head * out_stride_h
    store_pairs(out_ptr, out_rows, mask, turned1, turned2, R, P, 1, H, INTERLEAVED)
    if REST_P > 0:
        rest = normalise(rest, rstd, weight3, dtype, HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER)
        store_rest(out_ptr, out_rows, mask, rest, R, D - R, REST_P)


@triton.jit
def _token_row(
    x_ptr, x_stride_b, x_stride_s, x_stride_h, out_ptr, out_stride_b, out_stride_s, out_stride_h,
    cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
    weight_ptr, batch, token, table_start, table_tokens,
    HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONJUGATE: tl.constexpr, PER_CHANNEL: tl.constexpr, PER_HEAD: tl.constexpr,
    PARTIAL: tl.constexpr, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr, ROUND_AFTER: tl.constexpr,
):  # fmt: skip
    """Normalises over all heads of one token and rotates them.

    Tables are loaded before the reduction waits; weights after it, since holding them costs more (registers,
    hence programs in flight) than their latency.
    """
    x_offset = batch * x_stride_b + token * x_stride_s
    out_offset = batch * out_stride_b + token * out_stride_s
    table_token = token - table_start + tl.zeros([1, 1, 1], tl.int64)
    in_table = (table_token >= 0) & (table_token < table_tokens)
    table_row = batch * table_stride_b + table_token * table_stride_s
    dtype = x_ptr.dtype.element_ty

    head = tl.arange(0, MAIN).to(tl.int64)[None, :, None]
    first, second, rest = _load_heads(
        x_ptr, x_offset, x_stride_h, head, HEADS, D, R, P, REST_P, MAIN, INTERLEAVED
    )
    squares = _sum_squares(first, second, rest, REST_P)
    cos1, cos2, sin1, sin2 = load_tables(
        cos_ptr, sin_ptr, table_row, in_table, head, table_stride_h, table_stride_f, HEADS, R, P, 1, MAIN,
        INTERLEAVED, PER_CHANNEL, PER_HEAD,
    )  # fmt: skip
    if TAIL > 0:
        tail_head = (MAIN + tl.arange(0, TAIL)).to(tl.int64)[None, :, None]
        tail_first, tail_second, tail_rest = _load_heads(
            x_ptr, x_offset, x_stride_h, tail_head, HEADS, D, R, P, REST_P, TAIL, INTERLEAVED
        )
        squares += _sum_squares(tail_first, tail_second, tail_rest, REST_P)
        tail_cos1, tail_cos2, tail_sin1, tail_sin2 = cos1, cos2, sin1, sin2
        if PER_HEAD:
            tail_cos1, tail_cos2, tail_sin1, tail_sin2 = load_tables(
                cos_ptr, sin_ptr, table_row, in_table, tail_head, table_stride_h, table_stride_f,
                HEADS, R, P, 1, TAIL, INTERLEAVED, PER_CHANNEL, PER_HEAD,
            )  # fmt: skip
    rstd = inverse_rms(squares, HEADS * D, EPS, out_ptr.dtype.element_ty)[:, None, None]
    weight1, weight2, weight3 = _load_weight(
        weight_ptr, head, HAS_WEIGHT, HEADS, D, R, P, REST_P, MAIN, INTERLEAVED
    )
    _finish_heads(
        first, second, rest, weight1, weight2, weight3, rstd, cos1, cos2, sin1, sin2, in_table,
        head, dtype, out_ptr, out_offset, out_stride_h,
        HEADS, D, R, P, REST_P, MAIN, INTERLEAVED, CONJUGATE, PARTIAL,
        HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
    )  # fmt: skip
    if TAIL > 0:
        tail_weight1, tail_weight2, tail_weight3 = _load_weight(
            weight_ptr, tail_head, HAS_WEIGHT, HEADS, D, R, P, REST_P, TAIL, INTERLEAVED
        )
        _finish_heads(
            tail_first, tail_second, tail_rest, tail_weight1, tail_weight2, tail_weight3, rstd,
            tail_cos1, tail_cos2, tail_sin1, tail_sin2, in_table,
            tail_head, dtype, out_ptr, out_offset, out_stride_h,
            HEADS, D, R, P, REST_P, TAIL, INTERLEAVED, CONJUGATE, PARTIAL,
            HAS_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
        )  # fmt: skip


@triton.jit
def rotary_row_kernel(
    q_ptr, q_stride_b, q_stride_s, q_stride_h, q_out_ptr, q_out_stride_b, q_out_stride_s, q_out_stride_h,
    k_ptr, k_stride_b, k_stride_s, k_stride_h, k_out_ptr, k_out_stride_b, k_out_stride_s, k_out_stride_h,
    cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
    q_weight_ptr, k_weight_ptr, table_start, table_tokens, TENSORS: tl.constexpr,
    Q_HEADS: tl.constexpr, Q_MAIN: tl.constexpr, Q_TAIL: tl.constexpr,
    K_HEADS: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, REST_P: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONJUGATE: tl.constexpr, PER_CHANNEL: tl.constexpr, PER_HEAD: tl.constexpr,
    PARTIAL: tl.constexpr, Q_EPS: tl.constexpr, K_EPS: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr, ROUND_AFTER: tl.constexpr,
):  # fmt: skip
    """Axis 0: tokens, q and k of one token side by side so that they share its table row; axis 1: batch."""
    token = (tl.program_id(0) // TENSORS).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    if tl.program_id(0) % TENSORS == 0:
        _token_row(
            q_ptr, q_stride_b, q_stride_s, q_stride_h,
            q_out_ptr, q_out_stride_b, q_out_stride_s, q_out_stride_h,
            cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
            q_weight_ptr, batch, token, table_start, table_tokens,
            Q_HEADS, D, R, P, REST_P, Q_MAIN, Q_TAIL, INTERLEAVED, CONJUGATE, PER_CHANNEL, PER_HEAD, PARTIAL,
            Q_EPS, HAS_Q_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
        )  # fmt: skip
    else:
        _token_row(
            k_ptr, k_stride_b, k_stride_s, k_stride_h,
            k_out_ptr, k_out_stride_b, k_out_stride_s, k_out_stride_h,
            cos_ptr, sin_ptr, table_stride_b, table_stride_s, table_stride_h, table_stride_f,
            k_weight_ptr, batch, token, table_start, table_tokens,
            K_HEADS, D, R, P, REST_P, K_MAIN, K_TAIL, INTERLEAVED, CONJUGATE, PER_CHANNEL, PER_HEAD, PARTIAL,
            K_EPS, HAS_K_WEIGHT, ROUND_BEFORE_WEIGHT, ROUND_AFTER,
        )  # fmt: skip


def qk_norm_rotary(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool,
    eps_q: float,
    eps_k: float | None = None,
    across_heads: bool = False,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    round_before_weight: bool = False,
    round_after_norm: bool = True,
    rotary_dim: int | None = None,
    conjugate: bool = False,
    seq_start: int | None = None,
    out_dtype: torch.dtype | None = None,
    out_q: torch.Tensor | None = None,
    out_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RMSNorm of q and k, then `rotary`, in one launch; k may be None.

    q: [B, S, Hq, D], k: [B, S, Hk, D], tables, `rotary_dim`, `conjugate`, `seq_start` and outputs as for
    `rotary`: tokens outside the tables are normalised only; `out_q`, `out_k` may be slices of a joint buffer.
    across_heads: one mean over the H * D channels of a token, weights [H*D]; else one per head, weights [D].
    eps_k: eps_q where None. Statistics and products are fp32.
    round_before_weight: x * rstd is rounded to x's dtype before the weight multiplies it (as diffusers does).
    round_after_norm: the normalised value is rounded to x's dtype before the rotation.
    Raises what `rotary` raises; ValueError for weights that do not fit, or a row of more than 32768 channels.
    """
    eps_k = eps_q if eps_k is None else eps_k
    q_weight = _check_weight("q_weight", q_weight, q, across_heads)
    k_weight = None if k is None else _check_weight("k_weight", k_weight, k, across_heads)
    if not across_heads:
        return launch_heads(
            q, k, cos, sin, interleaved=interleaved, rotary_dim=rotary_dim, conjugate=conjugate,
            seq_start=seq_start, out_dtype=out_dtype, out_q=out_q, out_k=out_k, norm=True,
            q_weight=q_weight, k_weight=k_weight, eps_q=eps_q, eps_k=eps_k,
            round_before_weight=round_before_weight, round_after_norm=round_after_norm,
        )  # fmt: skip
    q, k, tables, width, start = check_pair(q, k, cos, sin, rotary_dim, seq_start)
    batch, tokens, q_heads, channels = q.shape
    k_heads = q_heads if k is None else k.shape[2]
    _check_row(max(q_heads, k_heads), channels)
    q_out = output_like(q, out_q, out_dtype)
    k_out = None if k is None else output_like(k, out_k, out_dtype)
    if batch * tokens * q_heads * k_heads == 0:
        return q_out, k_out
    tensors = 1 if k is None else 2
    second, second_out = (q, q_out) if k is None or k_out is None else (k, k_out)
    q_main, q_tail = _split_heads(q_heads)
    k_main, k_tail = _split_heads(k_heads)
    with device_guard(q):
        rotary_row_kernel[(tokens * tensors, batch)](
            q, *q.stride()[:3], q_out, *q_out.stride()[:3],
            second, *second.stride()[:3], second_out, *second_out.stride()[:3],
            tables.cos, tables.sin, *tables.strides,
            q if q_weight is None else q_weight, second if k_weight is None else k_weight,
            start, tables.tokens, TENSORS=tensors, Q_HEADS=q_heads, Q_MAIN=q_main, Q_TAIL=q_tail,
            K_HEADS=k_heads, K_MAIN=k_main, K_TAIL=k_tail,
            D=channels, R=width, P=triton.next_power_of_2(width // 2),
            REST_P=triton.next_power_of_2(channels - width) if channels > width else 0,
            INTERLEAVED=interleaved, CONJUGATE=conjugate,
            PER_CHANNEL=tables.per_channel, PER_HEAD=tables.per_head,
            PARTIAL=tables.tokens != tokens, Q_EPS=eps_q, K_EPS=eps_k,
            HAS_Q_WEIGHT=q_weight is not None, HAS_K_WEIGHT=k_weight is not None,
            ROUND_BEFORE_WEIGHT=round_before_weight, ROUND_AFTER=round_after_norm,
            num_warps=_row_warps(max(q_heads, k_heads) * triton.next_power_of_2(channels)),
        )  # fmt: skip
    return q_out, k_out


def _check_weight(
    name: str, weight: torch.Tensor | None, x: torch.Tensor, across_heads: bool
) -> torch.Tensor | None:
    """The weight, contiguous, of as many elements as one mean covers."""
    if weight is None:
        return None
    expected = x.shape[-2] * x.shape[-1] if across_heads else x.shape[-1]
    if weight.dim() != 1 or weight.numel() != expected:
        raise ValueError(f"{name} {tuple(weight.shape)} must be 1-D of {expected} elements")
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} is {weight.dtype}: the rotary kernels take float32, float16 or bfloat16")
    if weight.device != x.device:
        raise ValueError(f"{name} lies on {weight.device} and its tensor on {x.device}")
    return weight.contiguous()


def _check_row(heads: int, channels: int) -> None:
    if triton.next_power_of_2(heads) * triton.next_power_of_2(channels) > MAX_ROW:
        raise ValueError(f"a norm over {heads} heads of {channels} channels exceeds {MAX_ROW} channels")


def _split_heads(heads: int) -> tuple[int, int]:
    """Powers of two that together cover the heads: 40 as (32, 8), 30 as (32, 0), 24 as (16, 8)."""
    padded = triton.next_power_of_2(heads)
    if padded <= heads * 1.25:
        return padded, 0
    main = padded // 2
    return main, triton.next_power_of_2(heads - main)


def _row_warps(row: int) -> int:
    """Warps of one program: few, since all of them wait for the sum; up to 96 elements a thread."""
    for warps in (1, 2, 4, 8):
        if row <= warps * 32 * 96:
            return warps
    return 16


def isa_examples() -> list[IsaExample]:
    """Wan's norm over 40 heads with rotation."""
    constexprs = {
        "TENSORS": 2, "Q_HEADS": 40, "Q_MAIN": 32, "Q_TAIL": 8, "K_HEADS": 40, "K_MAIN": 32, "K_TAIL": 8,
        "D": 128, "R": 128, "P": 64, "REST_P": 0, "table_stride_f": 1,
        "INTERLEAVED": True, "CONJUGATE": False, "PER_CHANNEL": False, "PER_HEAD": False, "PARTIAL": False,
        "Q_EPS": 1e-6, "K_EPS": 1e-6, "HAS_Q_WEIGHT": True, "HAS_K_WEIGHT": True,
        "ROUND_BEFORE_WEIGHT": False, "ROUND_AFTER": True,
    }  # fmt: skip
    pointers = {n: "*bf16" for n in rotary_row_kernel.arg_names if n.endswith("_ptr")}
    pointers |= {"cos_ptr": "*fp32", "sin_ptr": "*fp32"}
    label = "Wan norm + RoPE q,k [1,32760,40,128]"
    return [isa_example(rotary_row_kernel, label, pointers, constexprs, _row_warps(40 * 128))]
