"""Planning a launch of the fused norm: all that follows from shapes, strides, dtypes and flags.

A plan costs the host ten times what the launch itself does, and a model asks for the same few over
and over: plans are remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch._prims_common import make_contiguous_strides_for

from rocm_passes.kernels.triton.common import INT32_MAX, TRITON_TYPE, broadcasts_to
from rocm_passes.kernels.triton.norms.norm_arguments import Norm
from rocm_passes.kernels.triton.rows import RowBlocks, RowIndex, collapse

MAX_WIDTH = 65536
MAX_RESIDENT_WIDTH = 8192
MAX_MODULATIONS = 2

TABLES = ("gate", "bw", "weight", "bias", "scale0", "shift0", "scale1", "shift1")


@dataclass(frozen=True)
class NormTile:
    """How one program covers its rows: `rows` rows at a time, in chunks of `chunk` columns, `loop`
    times.

    loop: more than once only where rows are resident; the next rows are then loaded while these are
    reduced.
    """

    chunk: int
    rows: int
    resident: bool
    num_warps: int
    loop: int = 1


#: From so many rows on, a loop over four leaves enough programs for a large GPU.
LEAST_LOOPED_ROWS = 4096
#: Two rows of so many elements are held in registers at once; of more they would spill.
WIDEST_LOOPED = 4096


def choose_tile(width: int, chain: bool = False, norm_after_norm_rows: int = 0) -> NormTile:
    """Tile for rows of `width` elements; `chain`: a residual or a modulation stands beside the
    norm.

    norm_after_norm_rows: how many rows there are, where a norm follows on the branch's norm.

    Chunks leave few lanes idle (3072 = 3 * 1024, 1536 = 3 * 512). Short rows go many to a program,
    long
    ones one by one: two rows that share a program's tables cost more in registers than the tables'
    second read costs in time (residual + LayerNorm + modulate at 5120 on an H200: 1.01 of the floor
    against 1.19). Four warps leave each lane 16 bytes a chunk, and are as fast as eight (a sweep on
    an H200). Two reductions in a
    row leave memory idle for long: there a program takes four rows, and loads the next one
    meanwhile (of the floor, 1.22 for 1.30 at [4608, 3840], 1.06 for 1.15 at [16896, 3840], 1.43 for
    1.53 at [4352, 2304]; chains with one reduction were slower so, H200).
    """
    if width > MAX_RESIDENT_WIDTH:
        return NormTile(chunk=4096, rows=1, resident=False, num_warps=8)
    if width > 1024:
        chunk = 1024 if width > 2048 else 512
        if norm_after_norm_rows >= LEAST_LOOPED_ROWS and width <= WIDEST_LOOPED:
            if 1.1 * width >= WIDEST_LOOPED:
                return NormTile(WIDEST_LOOPED, rows=1, resident=True, num_warps=8, loop=4)
            return NormTile(chunk, rows=1, resident=True, num_warps=4, loop=4)
        if chain and triton.cdiv(width, 2048) * 2048 <= 1.1 * width:
            chunk = 2048
        return NormTile(chunk, rows=1, resident=True, num_warps=4)
    chunk = triton.next_power_of_2(width)
    return NormTile(chunk, rows=max(1, 2048 // chunk), resident=True, num_warps=4)


#: A tensor as a plan sees it: shape, strides, dtype.
Meta = tuple[torch.Size, tuple[int, ...], torch.dtype]
#: By operand: the dtype to copy it into, and whether to expand it first.
Copies = dict[int, tuple[torch.dtype, bool]]


@dataclass(frozen=True)
class Plan:
    """All of a launch that follows from shapes, strides, dtypes and flags.

    copies: operands (by position) that must be copied first, contiguous: into which dtype, and
    whether they must be expanded to the full shape. blocks: programs; 0 where there is nothing to
    do. integers: strides and sizes, in the kernel's order.
    """

    shape: tuple[int, ...]
    outputs: int
    out_dtype: torch.dtype
    copies: Copies
    blocks: int
    integers: tuple[int, ...]
    constexprs: dict[str, Any]
    num_warps: int


@functools.lru_cache(maxsize=4096)
def plan_launch(metas: tuple[Meta | None, ...], norm: Norm, tile: NormTile | None) -> Plan:
    """Plan a launch. metas: of the operands, None where absent. Raises as `fused_norm` says."""
    _check(metas, norm)
    x, branch = metas[:2]
    assert x is not None
    shape = x[0] if branch is None else torch.broadcast_shapes(x[0], branch[0])
    width = shape[-1]
    out_dtype = norm.out_dtype or x[2]
    if 0 in shape:
        return Plan(shape, norm.outputs, out_dtype, {}, 0, (), {}, 1)
    copies = {
        k: (_read_as(m), False) for k, m in enumerate(metas) if m is not None and needs_copy(k, m)
    }
    strides, index = _numbered(metas, copies, shape)
    if tile is None:
        twice = norm.branch_eps is not None and norm.kind != "none"
        chain = branch is not None or norm.modulations > 0
        tile = choose_tile(width, chain, index.rows if twice else 0)
    modes, grouped = _modes(metas, index, tile)
    blocks = RowBlocks.over(index, tile.rows * tile.loop, grouped)
    integers: list[int] = []
    for k in range(len(metas)):
        integers += index.strides[k]
        if k >= 2:
            integers.append(strides[k][-1])
    integers += [blocks.inner, blocks.blocks_per_group, index.sizes[1], index.sizes[2]]
    constexprs = {
        "D": width,
        "CHUNK": tile.chunk,
        "CHUNKS": triton.cdiv(width, tile.chunk),
        "ROWS": tile.rows,
        "LOOP": tile.loop,
        "RESIDENT": tile.resident,
        "WIDE_ROWS": index.rows + tile.rows * tile.loop > INT32_MAX,
        "KIND": norm.kind,
        "EPS": float(norm.eps),
        "EPS_KIND": norm.eps_kind,
        "BRANCH": branch is not None,
        "BRANCH_NORM": norm.branch_eps is not None,
        "BRANCH_EPS": float(norm.branch_eps or 0.0),
        "BW_OFFSET": float(norm.branch_weight_offset),
        **{f"{name.upper()}_MODE": mode for name, mode in modes.items()},
        "OUTPUTS": norm.outputs,
        "STORE_SUM": norm.sum_dtype is not None,
        "ROUND_SUM": norm.round_sum,
        "SUM_TYPE": TRITON_TYPE[norm.sum_dtype or x[2]],
        "ROUND_NORM": norm.round_before_weight,
        "NORM_TYPE": TRITON_TYPE[x[2]],
        "WEIGHT_OFFSET": float(norm.weight_offset),
        "SCALE_OFFSET": float(norm.scale_offset),
    }
    return Plan(
        shape,
        norm.outputs,
        out_dtype,
        copies,
        blocks.blocks,
        tuple(integers),
        constexprs,
        tile.num_warps,
    )


def _check(metas: tuple[Meta | None, ...], norm: Norm) -> None:
    (x, branch), tables = metas[:2], dict(zip(TABLES, metas[2:], strict=True))
    assert x is not None
    _check_dtypes(x, branch, norm)
    _check_rows(x, branch)
    _check_branch(branch, tables, norm)
    if norm.modulations > MAX_MODULATIONS:
        raise ValueError(f"{norm.modulations} modulations; at most {MAX_MODULATIONS} are taken")
    _check_kind(norm, tables["weight"] is not None or tables["bias"] is not None)
    shape = x[0] if branch is None else torch.broadcast_shapes(x[0], branch[0])
    for table in filter(None, tables.values()):
        _check_table(table, shape)


def _check_dtypes(x: Meta, branch: Meta | None, norm: Norm) -> None:
    for name, dtype in (
        ("x", x[2]),
        ("branch", branch and branch[2]),
        ("output", norm.out_dtype),
        ("sum", norm.sum_dtype),
    ):
        if dtype is not None and dtype not in TRITON_TYPE:
            raise TypeError(f"{name} is {dtype}; float32, float16 or bfloat16 is needed")


def _check_rows(x: Meta, branch: Meta | None) -> None:
    if not x[0]:
        raise ValueError("x is 0-d; a last dimension to normalise is needed")
    if x[0][-1] > MAX_WIDTH:
        raise ValueError(f"rows of {x[0][-1]} elements; at most {MAX_WIDTH} are taken")
    if branch is not None and branch[0][-1:] != x[0][-1:]:
        raise ValueError(
            f"branch {tuple(branch[0])} and x {tuple(x[0])} differ in the last dimension"
        )


def _check_branch(branch: Meta | None, tables: Mapping[str, Meta | None], norm: Norm) -> None:
    if branch is None and (tables["gate"] or tables["bw"] or norm.branch_eps is not None):
        raise ValueError("gate, branch_weight and branch_eps need a branch")
    if tables["bw"] and norm.branch_eps is None:
        raise ValueError("branch_weight needs branch_eps: it belongs to the branch's norm")


def _check_table(table: Meta, shape: torch.Size) -> None:
    if not table[2].is_floating_point:
        raise TypeError(f"an operand is {table[2]}; a floating dtype is needed")
    if not broadcasts_to(table[0], shape):
        raise ValueError(
            f"an operand of shape {tuple(table[0])} does not broadcast to {tuple(shape)}"
        )


def _check_kind(norm: Norm, weighted: bool) -> None:
    if norm.kind not in ("rms", "layer", "none"):
        raise ValueError(f"kind is {norm.kind!r}; 'rms', 'layer' or 'none' is needed")
    if norm.kind == "none" and (weighted or norm.modulations or norm.sum_dtype is None):
        raise ValueError(
            "kind 'none' gives the sum alone: sum_dtype is needed, weight and modulation are not "
            "taken"
        )


def needs_copy(position: int, meta: Meta) -> bool:
    """x and the branch must have contiguous rows; a table a dtype and a reach that the kernel can
    read.
    """
    shape, strides, dtype = meta
    if position < 2:
        return strides[-1] != 1 and shape[-1] != 1
    # The kernel multiplies column by stride in 32 bits.
    return dtype not in TRITON_TYPE or (bool(shape) and (shape[-1] - 1) * strides[-1] > INT32_MAX)


def _read_as(meta: Meta) -> torch.dtype:
    """Tables of other floating dtypes are read as float32."""
    return meta[2] if meta[2] in TRITON_TYPE else torch.float32


def _numbered(
    metas: tuple[Meta | None, ...], copies: Copies, shape: torch.Size
) -> tuple[list[tuple[int, ...]], RowIndex]:
    """Each operand's strides over `shape`, and one numbering of the rows for all of them.

    Those that vary too wildly for three dims are all copied, expanded: `copies` then says so.
    """
    absent = (0,) * len(shape)
    strides = [
        absent if m is None else _expanded(m, shape, k in copies) for k, m in enumerate(metas)
    ]
    index = collapse(shape[:-1], [s[:-1] for s in strides])
    if index is None:
        copies.update({k: (_read_as(m), True) for k, m in enumerate(metas) if m is not None})
        strides = [absent if m is None else make_contiguous_strides_for(shape) for m in metas]
        index = collapse(shape[:-1], [s[:-1] for s in strides])
    assert index is not None, "contiguous operands collapse to one dim"
    return strides, index


def _expanded(meta: Meta, shape: torch.Size, contiguous: bool) -> tuple[int, ...]:
    """Strides of a tensor, or of its contiguous copy, over the shape that it is broadcast to."""
    sizes, strides, _ = meta
    if contiguous:
        strides = make_contiguous_strides_for(sizes)
    here = tuple(0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
    # A row of one element is read at column 0, whatever its stride; a full row keeps its own.
    return (0,) * (len(shape) - len(sizes)) + here


def _modes(
    metas: tuple[Meta | None, ...], index: RowIndex, tile: NormTile
) -> tuple[dict[str, int], bool]:
    """MODE of each table (0 absent, 1 shared by a program's rows, 2 by row), and whether rows go by
    groups.

    Groups (of the innermost dim) let a program share a [B,1,D] table; short groups would waste its
    rows.
    """
    present = [(k, name) for k, name in enumerate(TABLES, start=2) if metas[k] is not None]
    by_group = any(index.constant_in_group(k) and not index.constant(k) for k, _ in present)
    grouped = by_group and index.last_size >= 8 * tile.rows * tile.loop
    modes = dict.fromkeys(TABLES, 0)
    for k, name in present:
        shared = index.constant(k) or (grouped and index.constant_in_group(k))
        modes[name] = 1 if shared else 2
    return modes, grouped
