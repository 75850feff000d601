"""Calls of every operator that has a Triton lowering, over all that changes its kernels' code.

Each function makes one call. It asks `pick` for each choice: `pick("gate", False, True)`. Which
combinations are made is the caller's matter (`tests.kernels.specialisations`). Tensors have no
memory: only a 0-d eps is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rocm_passes.ops.call import Call
from rocm_passes.ops.channel_norm import ChannelNorm
from rocm_passes.ops.fused_norm import FusedNorm
from rocm_passes.ops.gated_activation import GatedActivation
from rocm_passes.ops.group_norm import GroupNorm
from rocm_passes.ops.group_norm_pad import GroupNormPad
from rocm_passes.ops.implicit_gemm_conv import ImplicitGemmConv
from rocm_passes.ops.layer_norm import LayerNorm
from rocm_passes.ops.pad import Pad
from rocm_passes.ops.qk_norm_rotary import QkNormRotary
from rocm_passes.ops.rms_norm import RmsNorm
from rocm_passes.ops.rotary import Rotary
from rocm_passes.ops.rotary_pair import RotaryPair

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
FLOATS = (BF16, F32, F16)
#: Of tables and weights: float64 ones are copied to float32.
TABLES = (F32, BF16, F64)
EPS = (1e-5, 0.0, 1e-30)


class Pick(Protocol):
    def __call__(self, name: str, *values: Any) -> Any: ...


def empty(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def rms_norm(pick: Pick) -> Call:
    x = _rows(pick)
    weight = _vector(pick, "weight", x.shape[-1])
    return RmsNorm(
        x, weight, _vector(pick, "bias", x.shape[-1]), *_eps(pick), pick("offset", 0.0, 1.0),
        _rounded(pick, "round to", x), _rounded(pick, "round product", x), pick("out", *FLOATS),
        pick("eps kind", "add", "clamp", "after_root"),
    )  # fmt: skip


def layer_norm(pick: Pick) -> Call:
    x = _rows(pick)
    weight, bias = (_vector(pick, name, x.shape[-1]) for name in ("weight", "bias"))
    return LayerNorm(x, weight, bias, pick("eps", *EPS), pick("out", *FLOATS))


def fused_norm(pick: Pick) -> Call:
    x = _rows(pick)
    width = x.shape[-1]
    kind = pick("kind", "rms", "layer", "none")
    has_branch = kind == "none" or pick("branch", True, False)
    branch = empty(*x.shape, dtype=pick("branch dtype", *FLOATS)) if has_branch else None
    gate = _table(pick, "gate", x) if has_branch else None
    branch_norm = has_branch and pick("branch norm", False, True)
    call = FusedNorm(
        x, branch, gate, branch_norm,
        _vector(pick, "branch weight", width) if branch_norm else None, 0.0, None, 1e-6,
        sum_dtype=pick("sum", *FLOATS), keep_sum=kind == "none" or pick("keep sum", False, True),
        kind=kind, weight=None, bias=None, eps_tensor=None, eps=pick("eps", *EPS),
        weight_offset=pick("offset", 0.0, 1.0), round_to=None, round_product=None,
        scale0=None, shift0=None, scale1=None, shift1=None, scale_offset=1.0, outputs=0,
        out_dtype=pick("out", *FLOATS), rounds_between=False,
    )  # fmt: skip
    if kind == "none":
        return call
    outputs = pick("outputs", 1, 2)
    tables = {f"{name}{i}": _table(pick, f"{name}{i}", x)
              for i in range(outputs) for name in ("scale", "shift")}  # fmt: skip
    return replace(
        call,
        weight=_vector(pick, "weight", width),
        bias=_vector(pick, "bias", width),
        round_to=_rounded(pick, "round to", x),
        eps_kind=pick("eps kind", "add", "clamp", "after_root") if kind == "rms" else "add",
        outputs=outputs,
        **tables,
    )


def group_norm(pick: Pick) -> Call:
    x, channels, groups = _grouped(pick)
    out = pick("out", *FLOATS)
    by_index = pick("pixel index", None, torch.int64, torch.int32)
    given = [_given(pick, name, x, by_index) for name in ("multiplier", "addend")]
    front, repeat_first = _frames(pick, x, out)
    index = None if by_index is None else empty(*x.shape[2:], dtype=by_index)
    if given == [None, None]:
        index = None
    return GroupNorm(
        x, _vector(pick, "x bias", channels), groups, _vector(pick, "weight", channels),
        _vector(pick, "bias", channels), pick("eps", *EPS), pick("silu", False, True), *given,
        False, out, index, front, repeat_first,
    )  # fmt: skip


def group_norm_pad(pick: Pick) -> Call:
    x, channels, groups = _grouped(pick)
    mode = pick("mode", "zeros", "replicate", "reflect")
    return GroupNormPad(
        x, _vector(pick, "x bias", channels), groups, _vector(pick, "weight", channels),
        _vector(pick, "bias", channels), pick("eps", *EPS), pick("silu", False, True), False,
        pick("out", *FLOATS), _padding(pick, x, mode), mode, pick("write last", True, False),
    )  # fmt: skip


def channel_norm(pick: Pick) -> Call:
    x = _image(pick, (96, 32, 3, 1, 1024, 384, 8704))
    channels, out = x.shape[1], pick("out", *FLOATS)
    front, repeat_first = _frames(pick, x, out)
    return ChannelNorm(
        x, _vector(pick, "x bias", channels), _vector(pick, "gamma", channels),
        _vector(pick, "bias", channels), pick("form", "l2", "mean"), pick("eps", *EPS),
        pick("scale", 1.0, 9.75), pick("silu", False, True), _rounded(pick, "round to", x),
        False, out, front, repeat_first,
    )  # fmt: skip


def pad(pick: Pick) -> Call:
    moved = (*FLOATS, F64, torch.bool, torch.int8, torch.int64, torch.complex64)
    x = _image(pick, (16, 3, 1, 96), moved)
    mode = pick("mode", "zeros", "replicate", "reflect")
    repeats = [pick(f"repeats {axis}", 1, 2, 3) for axis in range(x.dim() - 2)]
    skipped = repeats[0] - 1 if x.dim() == 5 and pick("skipped", False, True) else 0
    return Pad(x, _padding(pick, x, mode), mode, repeats, skipped, pick("write last", True, False))


def implicit_gemm_conv(pick: Pick) -> Call:
    dtype = pick("dtype", *FLOATS)
    channels = pick("channels", 32, 16, 96, 3, 1, 40)
    out = pick("outputs", 64, 3, 1, 16, 96, 192, 40, 256)
    kernel = [pick("kT", 3, 1), *pick("kHW", (3, 3), (1, 1), (1, 3), (7, 7))]
    frames, height, width = pick(
        "video", (4, 16, 16), (1, 16, 16), (3, 7, 5), (1, 1, 1), (1, 16000, 16000)
    )
    dilation = pick("dilation", (1, 1, 1), (1, 2, 2), (2, 1, 3))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    x = _laid_out(pick, empty(pick("samples", 1, 2), channels, frames, height, width, dtype=dtype))
    front = pick("front", 0, 2, 1)
    zeros = (reach[0], pick("zeros behind", 0, 1))
    made = ImplicitGemmConv(
        x, empty(*x.shape[:2], front, height, width, dtype=dtype) if front else None,
        empty(out, channels, *kernel, dtype=dtype), _vector(pick, "bias", out, FLOATS), zeros,
        pick("stride", (1, 1, 1), (1, 2, 2), (2, 1, 1)), (reach[1], reach[2]), dilation,
        pick("upsample", (1, 1), (2, 2), (1, 3)),
    )  # fmt: skip
    if pick("sums", False, True):
        return replace(made, bias=None, out_dtype=F32)
    if not pick("residual", False, True) or min(made.shape()) < 1:
        return made
    return replace(made, residual=_laid_out(pick, empty(*made.shape(), dtype=dtype)))


def gated_activation(pick: Pick) -> Call:
    gate, x = (empty(pick("tokens", 5, 1, 16), pick("channels", 64, 1, 1100, 33),
                     dtype=pick("dtype", *FLOATS)) for _ in range(2))  # fmt: skip
    if pick("halves of one tensor", False, True):
        gate, x = torch.cat([gate, x], -1).chunk(2, -1)
    return GatedActivation(gate, x, pick("act", "silu", "gelu", "gelu_tanh"))


def rotary(pick: Pick) -> Call:
    x = _heads(pick, "heads", pick("channels", *HEAD_SIZES))
    return Rotary(x, *_rotation(pick, x))


def rotary_pair(pick: Pick) -> Call:
    q = _heads(pick, "heads", pick("channels", *HEAD_SIZES))
    k = _like(pick, q)
    cos, sin, *rest = _rotation(pick, q, one_head_count=k.shape[2] == q.shape[2])
    return RotaryPair(q, k, cos, sin, *rest)


def qk_norm_rotary(pick: Pick) -> Call:
    q = _heads(pick, "heads", pick("channels", *HEAD_SIZES))
    k = [_like(pick, q)] if pick("k", True, False) else []
    same = all(t.shape[2] == q.shape[2] for t in k)
    cos, sin, interleaved, width, conjugate, start, out = _rotation(pick, q, one_head_count=same)
    across = pick("across heads", False, True)

    def weights(name: str, of: Sequence[Tensor]) -> list[Tensor]:
        dtype = pick(name, None, *FLOATS) if of else None
        size = [t.shape[2] * t.shape[3] if across else t.shape[3] for t in of]
        return [] if dtype is None else [empty(size[0], dtype=dtype)]

    q_weight, k_weight = weights("q weight", [q]), weights("k weight", k)
    eps = [pick("eps", *EPS)]
    return QkNormRotary(
        [q], k, q_weight, k_weight, [cos], [sin], [start or 0], eps, eps if k else [], across,
        pick("round before", False, True), pick("round after", False, True), interleaved, width,
        conjugate, out,
    )  # fmt: skip


#: By the operator's name.
CALLS: dict[str, Callable[[Pick], Call]] = {
    make.__name__: make
    for make in (
        rms_norm, layer_norm, fused_norm, group_norm, group_norm_pad, channel_norm, pad,
        implicit_gemm_conv, gated_activation, rotary, rotary_pair, qk_norm_rotary,
    )
}  # fmt: skip

#: In one program or in chunks, resident in registers or read twice, divisible by the chunk or not.
WIDTHS = (64, 3072, 1, 33, 5120, 1536, 2050, 8256)
HEAD_SIZES = (128, 64, 6, 2, 7, 72)


#: In 32 bits and beyond, in all or with the channels.
PIXELS = (
    (5, 6), (3, 4, 4), (16, 16), (2, 7, 5), (1, 1), (1, 8, 8), (4096, 4096), (2, 30000, 40000),
)  # fmt: skip


def _rows(pick: Pick) -> Tensor:
    """[..., D], in rows that lie apart or not."""
    shape = pick("rows", (2, 40), (1,), (), (2, 3, 5), (4100,), (2**31,))
    width, dtype = pick("width", *WIDTHS), pick("dtype", *FLOATS)
    if not pick("rows apart", False, True):
        return empty(*shape, width, dtype=dtype)
    return empty(*shape, 3 * width, dtype=dtype)[..., :width]


def _rounded(pick: Pick, name: str, x: Tensor) -> torch.dtype | None:
    """Where the graph rounds to x's dtype, or does not."""
    return x.dtype if pick(name, False, True) else None


def _eps(pick: Pick) -> tuple[Tensor | None, float]:
    eps = pick("eps", *EPS)
    return (torch.tensor(eps) if pick("eps as a tensor", False, True) else None), eps


def _vector(
    pick: Pick, name: str, size: int, dtypes: Sequence[torch.dtype] = TABLES
) -> Tensor | None:
    dtype = pick(name, None, *dtypes)
    return None if dtype is None else empty(size, dtype=dtype)


def _table(pick: Pick, name: str, x: Tensor) -> Tensor | None:
    """What modulates rows: of one row, of one for each sample, or of all; of one column."""
    how = pick(name, None, "row", "sample", "full", "column")
    if how is None:
        return None
    ones = {
        "row": [1] * (x.dim() - 1) + [x.shape[-1]],
        "sample": [*x.shape[: x.dim() - 2], *[1] * min(x.dim() - 1, 1), x.shape[-1]],
        "full": list(x.shape),
        "column": [*x.shape[:-1], 1],
    }
    return empty(*ones[how], dtype=pick("table", *TABLES))


def _image(pick: Pick, channels: Sequence[int], dtypes: Sequence[torch.dtype] = FLOATS) -> Tensor:
    size = pick("pixels", *PIXELS)
    shape = (pick("samples", 1, 2), pick("channels", *channels), *size)
    return _laid_out(pick, empty(*shape, dtype=pick("dtype", *dtypes)))


def _laid_out(pick: Pick, x: Tensor) -> Tensor:
    how = pick("layout", "contiguous", "channels-last", "turned", "apart")
    if how == "channels-last":
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=last)
    if how == "turned":
        return empty(*reversed(x.shape), dtype=x.dtype).permute(*reversed(range(x.dim())))
    if how == "apart":
        return empty(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype)[..., : x.shape[-1]]
    return x


def _grouped(pick: Pick) -> tuple[Tensor, int, int]:
    x = _image(pick, (32, 6, 1, 128, 1000))
    channels = x.shape[1]
    groups = {"one": 1, "two": 2 - channels % 2, "each": channels}
    return x, channels, groups[pick("groups", *groups)]


def _given(pick: Pick, name: str, x: Tensor, by_index: torch.dtype | None) -> Tensor | None:
    how = pick(name, None, "full", "broadcast")
    if how is None:
        return None
    dtype = pick("given", *TABLES)
    spatial = (1,) * (x.dim() - 2) if by_index is not None or how == "broadcast" else x.shape[2:]
    return empty(*x.shape[:2], *spatial, dtype=dtype)


def _frames(pick: Pick, x: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, int]:
    how = pick("in front", None, "frames", "its first") if x.dim() == 5 else None
    if how == "frames":
        frames = empty(*x.shape[:2], 2, *x.shape[3:], dtype=dtype)
        return (frames.contiguous(memory_format=torch.channels_last_3d)
                if pick("frames last", False, True) else frames), 0  # fmt: skip
    return None, 2 if how == "its first" else 0


def _padding(pick: Pick, x: Tensor, mode: str) -> list[int]:
    """Where it reflects, less than there are pixels."""
    wanted = pick("padding", (1, 1, 1, 1, 1, 1), (0, 1, 0, 1, 2, 0), (0, 0, 0, 0, 0, 0))
    sizes = [size for size in reversed(x.shape[2:]) for _ in range(2)]
    most = [size - 1 if mode == "reflect" else 2 for size in sizes]
    return [min(pad, limit) for pad, limit in zip(wanted, most, strict=False)]


def _heads(pick: Pick, name: str, channels: int) -> Tensor:
    batch, tokens = pick("batch", 1, 2), pick("tokens", 16, 5, 1)
    heads = pick(name, 24, 1, 3, 40)
    dtype = pick("dtype", *FLOATS)
    if pick("fused projection", False, True):
        return empty(batch, tokens, 3 * heads, channels, dtype=dtype)[:, :, :heads]
    return empty(batch, tokens, heads, channels, dtype=dtype)


def _like(pick: Pick, q: Tensor) -> Tensor:
    """k of q's heads, or of one."""
    heads = 1 if pick("one head of k", False, True) else q.shape[2]
    return empty(*q.shape[:2], heads, q.shape[3], dtype=pick("k dtype", *FLOATS))


def _rotation(pick: Pick, x: Tensor, one_head_count: bool = True) -> tuple[Any, ...]:
    """cos, sin, interleaved, width, conjugate, seq_start, out_dtype."""
    batch, tokens, heads, channels = x.shape
    widths = {"all": channels - channels % 2, "half": channels // 4 * 2, "one pair": 2}
    width = widths[pick("width", *widths)] or 2
    start = pick("seq start", None, 0, 1)
    shape = (
        batch if pick("table for each sample", False, True) else 1,
        tokens if start is None else max(tokens - 1 - start, 0),
        heads if one_head_count and pick("table for each head", False, True) else 1,
        width if pick("table for each channel", False, True) else width // 2,
    )
    cos, sin = (empty(*shape, dtype=pick("table", *FLOATS)) for _ in range(2))
    return (
        cos, sin, pick("interleaved", False, True), width, pick("conjugate", False, True),
        start, pick("out", *FLOATS),
    )  # fmt: skip
