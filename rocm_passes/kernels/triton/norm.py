"""Residual -> norm -> modulate over the last dimension, in one pass over the row.

    s     = x + gate * norm?(branch)
    n     = norm(s) * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k        one output per (scale, shift) pair

Everything is computed in fp32 and rounded once, on the store. Any strides: leading dims are collapsed where
the operands' strides allow it, and a per-head view of a fused projection costs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rocm_passes.kernels.triton.common import (
    INT32_MAX,
    TRITON_TYPE,
    IsaExample,
    broadcasts_to,
    cdiv,
    check_dtype,
    device_guard,
    isa_example,
    launch_warps,
    power_of_two_above,
)
from rocm_passes.kernels.triton.norm_kernel import fused_norm_kernel
from rocm_passes.kernels.triton.rows import RowBlocks, RowIndex, collapse

NormKind = Literal["rms", "layer", "none"]
Modulation = tuple[Tensor | None, Tensor | None]

MAX_WIDTH = 65536
MAX_RESIDENT_WIDTH = 8192
MAX_MODULATIONS = 2

_TABLES = ("gate", "bw", "weight", "bias", "scale0", "shift0", "scale1", "shift1")


@dataclass(frozen=True)
class NormTile:
    """How one program covers its rows: `rows` rows at a time, in chunks of `chunk` columns."""

    chunk: int
    rows: int
    resident: bool
    num_warps: int


def choose_tile(width: int, chain: bool = False) -> NormTile:
    """Tile for rows of `width` elements; `chain`: a residual or a modulation stands beside the norm.

    Chunks leave few lanes idle (3072 = 3 * 1024, 1536 = 3 * 512). Short rows go many to a program, long
    ones one by one: two rows that share a program's tables cost more in registers than the tables' second
    read costs in time (residual + LayerNorm + modulate at 5120 on an H200: 1.01 of the floor against 1.19).
    Four warps leave each lane 16 bytes a chunk, and are as fast as eight (a sweep on an H200).
    """
    if width > MAX_RESIDENT_WIDTH:
        return NormTile(chunk=4096, rows=1, resident=False, num_warps=8)
    if width > 1024:
        chunk = 1024 if width > 2048 else 512
        if chain and cdiv(width, 2048) * 2048 <= 1.1 * width:
            chunk = 2048
        return NormTile(chunk, rows=1, resident=True, num_warps=4)
    chunk = power_of_two_above(width)
    return NormTile(chunk, rows=max(1, 2048 // chunk), resident=True, num_warps=4)


def fused_norm(
    x: Tensor,
    *,
    kind: NormKind,
    eps: float = 0.0,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    branch_weight: Tensor | None = None,
    branch_eps: float | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
    modulations: Sequence[Modulation] = (),
    scale_offset: float = 1.0,
    out_dtype: torch.dtype | None = None,
    sum_dtype: torch.dtype | None = None,
    round_sum: bool = False,
    tile: NormTile | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Residual, norm and modulation of the rows of `x` ([..., D], float32/float16/bfloat16, D up to 65536).

    kind: "rms" or "layer" (no outputs without a norm: "none" gives the sum alone, and needs `sum_dtype`).
    branch: same shape as x up to broadcasting of leading dims. With `branch_eps` it is RMS-normalised first
        (times `branch_weight`): Z-Image, Lumina2, Mochi.
    gate, weight, bias, scale, shift, branch_weight: any float dtype, broadcastable to x.
    weight_offset: 1.0 for Gemma's (1 + w).
    round_before_weight: the norm is rounded to x's dtype before the weight, as diffusers' RMSNorm does.
    modulations: up to two (scale, shift) pairs, each an output; none means one output, the norm itself.
    out_dtype: of the outputs; x's by default.
    sum_dtype: where given, s is returned in it as the second result.
    round_sum: the norm reads s rounded to `sum_dtype` (or x's dtype), as eager low precision does.

    Returns contiguous outputs and the sum. Raises TypeError on dtypes, ValueError on shapes and arguments.
    """
    _check(x, kind, branch, gate, branch_weight, branch_eps, weight, bias, modulations, sum_dtype)
    shape = x.shape if branch is None else torch.broadcast_shapes(x.shape, branch.shape)
    width = shape[-1]
    outputs = 0 if kind == "none" else max(len(modulations), 1)
    outs = [torch.empty(shape, dtype=out_dtype or x.dtype, device=x.device) for _ in range(outputs)]
    total = None if sum_dtype is None else torch.empty(shape, dtype=sum_dtype, device=x.device)
    for made in (*outs, *(() if total is None else (total,))):
        check_dtype("output", made)
    if 0 in shape:
        return outs, total

    (scale0, shift0), (scale1, shift1) = (*modulations, (None, None), (None, None))[:2]
    given = (gate, branch_weight, weight, bias, scale0, shift0, scale1, shift1)
    tables = dict(zip(_TABLES, (_table(t, shape) for t in given), strict=True))
    rows = {"x": _rows(x, shape), "branch": None if branch is None else _rows(branch, shape)}
    operands, index = _numbered(rows | tables, shape)

    tile = tile or choose_tile(width, chain=branch is not None or bool(modulations))
    modes, grouped = _modes(operands, index, tile)
    blocks = RowBlocks.over(index, tile.rows, grouped)

    x_operand = operands["x"]
    assert x_operand is not None
    pointers = [x_operand if t is None else t for t in operands.values()]
    strides: list[int] = []
    for k, (name, t) in enumerate(operands.items()):
        strides += index.strides[k]
        if name in _TABLES:
            strides.append(0 if t is None else t.stride(-1))
    spare = outs[0] if outs else total
    assert spare is not None
    stored = [spare if t is None else t for t in (total, *outs, None, None)][:3]
    with device_guard(x):
        fused_norm_kernel[(blocks.blocks,)](
            *pointers,
            *stored,
            *strides,
            blocks.inner,
            blocks.blocks_per_group,
            index.sizes[1],
            index.sizes[2],
            D=width,
            CHUNK=tile.chunk,
            CHUNKS=cdiv(width, tile.chunk),
            ROWS=tile.rows,
            RESIDENT=tile.resident,
            WIDE_ROWS=index.rows + tile.rows > INT32_MAX,
            KIND=kind,
            EPS=float(eps),
            BRANCH=branch is not None,
            BRANCH_NORM=branch_eps is not None,
            BRANCH_EPS=float(branch_eps or 0.0),
            **{f"{name.upper()}_MODE": mode for name, mode in modes.items()},
            OUTPUTS=outputs,
            STORE_SUM=total is not None,
            ROUND_SUM=round_sum,
            SUM_TYPE=TRITON_TYPE[sum_dtype or x.dtype],
            ROUND_NORM=round_before_weight,
            NORM_TYPE=TRITON_TYPE[x.dtype],
            WEIGHT_OFFSET=float(weight_offset),
            SCALE_OFFSET=float(scale_offset),
            num_warps=launch_warps(tile.num_warps, x),
        )
    return outs, total


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    bias: Tensor | None = None,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """RMSNorm over the last dim of `x` ([..., D]); contiguous, in `out_dtype` or x's."""
    outs, _ = fused_norm(
        x,
        kind="rms",
        eps=eps,
        weight=weight,
        bias=bias,
        weight_offset=weight_offset,
        round_before_weight=round_before_weight,
        out_dtype=out_dtype,
    )
    return outs[0]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    round_sum: bool = False,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
    out_dtype: torch.dtype | None = None,
    sum_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and the sum itself (in `sum_dtype`, x's by default)."""
    outs, total = fused_norm(
        x,
        kind="rms",
        eps=eps,
        branch=residual,
        weight=weight,
        weight_offset=weight_offset,
        round_before_weight=round_before_weight,
        out_dtype=out_dtype,
        sum_dtype=sum_dtype or x.dtype,
        round_sum=round_sum,
    )
    assert total is not None
    return outs[0], total


def _check(
    x: Tensor,
    kind: NormKind,
    branch: Tensor | None,
    gate: Tensor | None,
    branch_weight: Tensor | None,
    branch_eps: float | None,
    weight: Tensor | None,
    bias: Tensor | None,
    modulations: Sequence[Modulation],
    sum_dtype: torch.dtype | None,
) -> None:
    check_dtype("x", x)
    if branch is not None:
        check_dtype("branch", branch)
    if x.dim() == 0:
        raise ValueError("x is 0-d; a last dimension to normalise is needed")
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"rows of {x.shape[-1]} elements; at most {MAX_WIDTH} are taken")
    if branch is not None and branch.shape[-1:] != x.shape[-1:]:
        raise ValueError(f"branch {tuple(branch.shape)} and x {tuple(x.shape)} differ in the last dimension")
    if branch is None and (gate is not None or branch_weight is not None or branch_eps is not None):
        raise ValueError("gate, branch_weight and branch_eps need a branch")
    if branch_weight is not None and branch_eps is None:
        raise ValueError("branch_weight needs branch_eps: it belongs to the branch's norm")
    if len(modulations) > MAX_MODULATIONS:
        raise ValueError(f"{len(modulations)} modulations; at most {MAX_MODULATIONS} are taken")
    if kind not in ("rms", "layer", "none"):
        raise ValueError(f"kind is {kind!r}; 'rms', 'layer' or 'none' is needed")
    if kind == "none" and (weight is not None or bias is not None or modulations or sum_dtype is None):
        raise ValueError(
            "kind 'none' gives the sum alone: sum_dtype is needed, weight and modulation are not taken"
        )


def _table(t: Tensor | None, shape: torch.Size) -> Tensor | None:
    """An operand that is broadcast to the rows, as a view of the full shape."""
    if t is None:
        return None
    if not t.is_floating_point():
        raise TypeError(f"an operand is {t.dtype}; a floating dtype is needed")
    if t.dtype not in TRITON_TYPE:
        t = t.float()
    if not broadcasts_to(t.shape, shape):
        raise ValueError(f"an operand of shape {tuple(t.shape)} does not broadcast to {tuple(shape)}")
    return t.expand(shape)


def _rows(t: Tensor, shape: torch.Size) -> Tensor:
    """x or branch as a view of the full shape whose rows are contiguous (a copy where they are not)."""
    if t.stride(-1) != 1 and t.shape[-1] != 1:
        t = t.contiguous()
    return t.expand(shape)


def _numbered(
    operands: dict[str, Tensor | None], shape: torch.Size
) -> tuple[dict[str, Tensor | None], RowIndex]:
    """One numbering of the rows for all operands; those vary too wildly for three dims are copied first."""

    def index() -> RowIndex | None:
        none = (0,) * len(shape)
        return collapse(shape[:-1], [(none if t is None else t.stride())[:-1] for t in operands.values()])

    found = index()
    if found is None:
        operands = {name: None if t is None else t.contiguous() for name, t in operands.items()}
        found = index()
    assert found is not None, "contiguous operands collapse to one dim"
    return operands, found


def _modes(
    operands: dict[str, Tensor | None], index: RowIndex, tile: NormTile
) -> tuple[dict[str, int], bool]:
    """MODE of each table (0 absent, 1 shared by a program's rows, 2 by row), and whether rows go by groups.

    Groups (of the innermost dim) let a program share a [B,1,D] table; short groups would waste its rows.
    """
    present = [(k, name) for k, name in enumerate(operands) if operands[name] is not None and name in _TABLES]
    by_group = any(index.constant_in_group(k) and not index.constant(k) for k, _ in present)
    grouped = by_group and index.last_size >= 8 * tile.rows
    modes = dict.fromkeys(_TABLES, 0)
    for k, name in present:
        shared = index.constant(k) or (grouped and index.constant_in_group(k))
        modes[name] = 1 if shared else 2
    return modes, grouped


def isa_examples() -> list[IsaExample]:
    """Production launches, for the ISA report: plain norms, per head, and the two fused chains."""
    return [
        _example("rms_norm [32760, 5120] bf16", 5120, weight="*bf16"),
        _example("rms_norm per head [138240, 128] bf16", 128, weight="*bf16"),
        _example("rms_norm per head [236544, 64] bf16", 64, weight="*bf16"),
        _example("add + rms_norm [32760, 5120] bf16", 5120, branch=True, weight="*bf16", total=True),
        _example(
            "x + gate * branch; layer_norm; modulate [32760, 5120] bf16, fp32 tables",
            5120,
            kind="layer",
            branch=True,
            gate="*fp32",
            scale0="*fp32",
            shift0="*fp32",
            total=True,
        ),
        _example(
            "x + gate * rms_norm(branch); rms_norm; scale [4608, 3840] bf16",
            3840,
            branch=True,
            branch_norm=True,
            gate="*bf16",
            bw="*bf16",
            weight="*bf16",
            scale0="*bf16",
            total=True,
        ),
        _example("rms_norm [4096, 13824] bf16, read twice", 13824, weight="*bf16"),
    ]


def _example(
    label: str,
    width: int,
    kind: NormKind = "rms",
    branch: bool = False,
    branch_norm: bool = False,
    total: bool = False,
    **tables: str,
) -> IsaExample:
    tile = choose_tile(width, chain=branch)
    constexprs: dict[str, Any] = {
        "D": width,
        "CHUNK": tile.chunk,
        "CHUNKS": cdiv(width, tile.chunk),
        "ROWS": tile.rows,
        "RESIDENT": tile.resident,
        "WIDE_ROWS": False,
        "KIND": kind,
        "EPS": 1e-6,
        "BRANCH": branch,
        "BRANCH_NORM": branch_norm,
        "BRANCH_EPS": 1e-6,
        "OUTPUTS": 1,
        "STORE_SUM": total,
        "ROUND_SUM": total,
        "SUM_TYPE": TRITON_TYPE[torch.bfloat16],
        "ROUND_NORM": False,
        "NORM_TYPE": TRITON_TYPE[torch.bfloat16],
        "WEIGHT_OFFSET": 0.0,
        "SCALE_OFFSET": 1.0,
        "n1": 1,
        "n2": 1,
    }
    pointers = {name: "*bf16" for name in fused_norm_kernel.arg_names if name.endswith("_ptr")}
    for name in _TABLES:
        constexprs[f"{name.upper()}_MODE"] = int(name in tables)
        constexprs[f"{name}_col"] = 1  # as a launch specialises it
        pointers[f"{name}_ptr"] = tables.get(name, "*bf16")
    return isa_example(fused_norm_kernel, label, pointers, constexprs, tile.num_warps)
