"""What the rotary kernels share: tiles of channel pairs on the device, tables and tile sizes on the
host.

A kernel sees a tensor as rows of D channels, one row per (batch, token, head). A tile is [T tokens,
H heads, P pairs]: the first and the second channel of every pair as two tensors, and the channels
past the rotary width as a third. Interleaved pairs (2i, 2i+1) are loaded as one run of channels and
split in registers, half-split pairs (i, i + R/2) as two runs, so that either way a thread reads 16
bytes at a time.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton kernels carry no Python types: their arguments are device values.)

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import INT32_MAX, TRITON_TYPE


@triton.jit
def load_pairs(
    ptr, offsets, mask, channel_stride, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """First and second channels, fp32 [T, H, P], of the R/2 pairs of the rows at `offsets` ([T, H,
    1]).
    """
    if INTERLEAVED:
        channel = tl.arange(0, 2 * P)[None, None, :]
        run = tl.load(
            ptr + offsets + channel * channel_stride, mask=mask & (channel < R), other=0.0
        )
        first, second = tl.split(tl.reshape(run.to(tl.float32), [T, H, P, 2]))
    else:
        pair = tl.arange(0, P)[None, None, :]
        inside = mask & (pair < R // 2)
        near = ptr + offsets + pair * channel_stride
        first = tl.load(near, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(near + (R // 2) * channel_stride, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_pairs(
    ptr, offsets, mask, first, second, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_pairs` for unit channel stride; rounds once, to the pointer's dtype."""
    dtype = ptr.dtype.element_ty
    if INTERLEAVED:
        channel = tl.arange(0, 2 * P)[None, None, :]
        run = tl.reshape(tl.join(first.to(dtype), second.to(dtype)), [T, H, 2 * P])
        tl.store(ptr + offsets + channel, run, mask=mask & (channel < R))
    else:
        pair = tl.arange(0, P)[None, None, :]
        inside = mask & (pair < R // 2)
        tl.store(ptr + offsets + pair, first.to(dtype), mask=inside)
        tl.store(ptr + offsets + R // 2 + pair, second.to(dtype), mask=inside)


@triton.jit
def load_rest(ptr, offsets, mask, R: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr):
    """The REST channels that follow the R rotated ones, fp32 [T, H, REST_P]."""
    channel = tl.arange(0, REST_P)[None, None, :]
    return tl.load(ptr + offsets + R + channel, mask=mask & (channel < REST), other=0.0).to(
        tl.float32
    )


@triton.jit
def store_rest(ptr, offsets, mask, rest, R: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr):
    channel = tl.arange(0, REST_P)[None, None, :]
    tl.store(
        ptr + offsets + R + channel, rest.to(ptr.dtype.element_ty), mask=mask & (channel < REST)
    )


@triton.jit
def load_table(
    ptr, offsets, mask, channel_stride, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    H: tl.constexpr,
    INTERLEAVED: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """The table's values for the two channels of each pair; one value for both if not
    PER_CHANNEL.
    """
    if PER_CHANNEL:
        first, second = load_pairs(ptr, offsets, mask, channel_stride, R, P, T, H, INTERLEAVED)
    else:
        pair = tl.arange(0, P)[None, None, :]
        inside = mask & (pair < R // 2)
        first = tl.load(ptr + offsets + pair * channel_stride, mask=inside, other=0.0).to(
            tl.float32
        )
        second = first
    return first, second


@triton.jit
def load_tables(
    cos_ptr, sin_ptr, row, in_table, head, stride_h, stride_f,
    HEADS: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, H: tl.constexpr,
    INTERLEAVED: tl.constexpr, PER_CHANNEL: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """cos1, cos2, sin1, sin2 of the table rows at `row`: fp32 [T, 1, P], or [T, H, P] if
    PER_HEAD.
    """
    if PER_HEAD:
        rows, mask = row + head * stride_h, in_table & (head < HEADS)
        cos1, cos2 = load_table(cos_ptr, rows, mask, stride_f, R, P, T, H, INTERLEAVED, PER_CHANNEL)
        sin1, sin2 = load_table(sin_ptr, rows, mask, stride_f, R, P, T, H, INTERLEAVED, PER_CHANNEL)
    else:
        cos1, cos2 = load_table(
            cos_ptr, row, in_table, stride_f, R, P, T, 1, INTERLEAVED, PER_CHANNEL
        )
        sin1, sin2 = load_table(
            sin_ptr, row, in_table, stride_f, R, P, T, 1, INTERLEAVED, PER_CHANNEL
        )
    return cos1, cos2, sin1, sin2


@triton.jit
def rotate(first, second, cos1, cos2, sin1, sin2, CONJUGATE: tl.constexpr):
    """Rotates each pair by its angle, or by minus its angle if CONJUGATE."""
    if CONJUGATE:
        turned1 = first * cos1 + second * sin1
        turned2 = second * cos2 - first * sin2
    else:
        turned1 = first * cos1 - second * sin1
        turned2 = second * cos2 + first * sin2
    return turned1, turned2


@triton.jit
def normalise(
    x,
    rstd,
    weight,
    dtype,
    HAS_WEIGHT: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
    ROUND_AFTER: tl.constexpr,
):
    """x * rstd * weight in fp32, rounded to `dtype` where the original graph rounds."""
    y = x * rstd
    if ROUND_BEFORE_WEIGHT:
        y = y.to(dtype).to(tl.float32)
    if HAS_WEIGHT:
        y = y * weight
    if ROUND_AFTER:
        y = y.to(dtype).to(tl.float32)
    return y


@dataclass(frozen=True)
class Tables:
    """cos and sin of one logical shape [Bt, St, Ht, F] and one set of strides, 0 along dims of size
    1.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    strides: tuple[int, int, int, int]
    per_channel: bool
    per_head: bool

    @property
    def tokens(self) -> int:
        return self.cos.shape[1]


def prepare_tables(
    cos: torch.Tensor, sin: torch.Tensor, batch: int, heads: set[int], rotary_dim: int
) -> Tables:
    """Checks the tables against x; copies them if cos and sin differ in strides, or channels lie
    too far apart.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype not in TRITON_TYPE:
            raise TypeError(f"{name} is {table.dtype}: float32, float16 or bfloat16 is needed")
        if table.dim() != 4:
            raise ValueError(
                f"{name} must be 4-D [batch, tokens, heads, width], not {tuple(table.shape)}"
            )
    if cos.shape != sin.shape or cos.device != sin.device:
        raise ValueError(
            f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must agree in shape and device"
        )
    table_batch, _, table_heads, width = cos.shape
    if table_batch not in (1, batch):
        raise ValueError(f"table batch {table_batch} is neither 1 nor {batch}")
    if table_heads != 1 and heads != {table_heads}:
        raise ValueError(
            f"table head count {table_heads} is neither 1 nor that of x, {sorted(heads)}"
        )
    if width not in (rotary_dim // 2, rotary_dim):
        raise ValueError(
            f"table width {width} is neither half of nor the whole rotary width {rotary_dim}"
        )
    # The kernel multiplies channel by stride in 32 bits.
    if _strides(cos) != _strides(sin) or (width - 1) * _strides(cos)[3] > INT32_MAX:
        cos, sin = cos.contiguous(), sin.contiguous()
    return Tables(cos, sin, _strides(cos), width == rotary_dim, table_heads != 1)


def _strides(table: torch.Tensor) -> tuple[int, int, int, int]:
    b, s, h, f = (
        stride if size > 1 else 0 for size, stride in zip(table.shape, table.stride(), strict=True)
    )
    return b, s, h, f or 1


def check_input(name: str, x: torch.Tensor) -> torch.Tensor:
    """x as the kernels take it: 4-D, float, of unit channel stride (by a copy if it has
    another).
    """
    if x.dtype not in TRITON_TYPE:
        raise TypeError(
            f"{name} is {x.dtype}: the rotary kernels take float32, float16 or bfloat16"
        )
    if x.dim() != 4:
        raise ValueError(
            f"{name} must be 4-D [batch, tokens, heads, channels], not {tuple(x.shape)}"
        )
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def check_rotary_dim(rotary_dim: int | None, channels: int) -> int:
    """The rotary width, all channels by default."""
    width = channels if rotary_dim is None else rotary_dim
    if width <= 0 or width % 2 or width > channels:
        raise ValueError(
            f"rotary width {width} is not an even number from 2 to the head size {channels}"
        )
    return width


def check_seq_start(seq_start: int | None, tables: Tables, tokens: int) -> int:
    """The token that the tables' first row belongs to."""
    start = 0 if seq_start is None else seq_start
    if seq_start is None and tables.tokens != tokens:
        raise ValueError(
            f"tables of {tables.tokens} tokens for {tokens}: give seq_start to rotate a part"
        )
    if start < 0 or start + tables.tokens > tokens:
        raise ValueError(
            f"table tokens {start} to {start + tables.tokens} lie outside the {tokens} of x"
        )
    return start


def output_like(
    x: torch.Tensor, out: torch.Tensor | None, dtype: torch.dtype | None
) -> torch.Tensor:
    """The tensor to write: `out` checked, or a dense one in x's memory order."""
    if dtype not in (None, *TRITON_TYPE):
        raise TypeError(
            f"out_dtype is {dtype}: the rotary kernels write float32, float16 or bfloat16"
        )
    if out is None:
        made = torch.empty_like(x, dtype=dtype or x.dtype)
        return (
            made
            if made.stride(-1) == 1
            else torch.empty_like(made, memory_format=torch.contiguous_format)
        )
    if out.shape != x.shape or out.device != x.device:
        raise ValueError(
            f"out {tuple(out.shape)} on {out.device} does not fit {tuple(x.shape)} on {x.device}"
        )
    if dtype is not None and out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} and out_dtype asks for {dtype}")
    if out.dtype not in TRITON_TYPE:
        raise TypeError(
            f"out is {out.dtype}: the rotary kernels write float32, float16 or bfloat16"
        )
    if out.stride(-1) != 1:
        raise ValueError("out must have unit stride in the channels")
    return out


@functools.lru_cache(maxsize=1024)
def tile_shape(
    heads: tuple[int, ...], channels: int, norm: bool, across_heads: bool
) -> tuple[int, int, int]:
    """(tokens, heads, warps) of one program, as measured on an H200.

    Without a norm 4096 elements on 4 warps keep most bytes in flight. A norm makes the program wait
    for a sum: more and smaller programs hide that. Heads come first, padded by a third at most,
    then tokens. A norm across heads takes them all: masked lanes cost less there than a second,
    exact tile.
    """
    padded = triton.next_power_of_2(channels)
    if across_heads:
        head_tile = triton.next_power_of_2(max(heads))
        return 1, head_tile, min(16, max(2, head_tile * padded // 2048))
    elements, warps = (1024, 2) if norm else (4096, 4)
    head_tile = 1
    while 2 * head_tile * padded <= elements and all(
        _padding(h, 2 * head_tile) <= 1.34 for h in heads
    ):
        head_tile *= 2
    token_tile = max(1, elements // 2 // (head_tile * padded))
    return min(token_tile, 8), head_tile, warps


def _padding(heads: int, tile: int) -> float:
    return float(triton.cdiv(heads, tile) * tile / heads)
