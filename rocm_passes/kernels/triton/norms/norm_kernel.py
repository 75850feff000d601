"""Device code of the residual -> norm -> modulate family; `norm.py` plans the launches.

Per row, all in fp32:

    s = x + gate * branch               the branch RMS-normalised first where BRANCH_NORM, times
                                        (branch_weight_offset + branch_weight)
    n = s * rsqrt(mean(s^2) + eps)      KIND "rms"
        (s - mean) * rsqrt(var + eps)   KIND "layer"
    n = n * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k

An operand's MODE says where it varies: 0 absent, 1 the same for all rows of a program, 2 by row.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"
# ruff: noqa: RUF005 -- Triton's tuples grow by `+`

import triton
import triton.language as tl

from rocm_passes.kernels.triton.common import inverse_rms


@triton.jit
def _row_offset(rows, n1, n2, s0, s1, s2):
    """Element offset of rows numbered over (n0, n1, n2)."""
    i2 = rows % n2
    outer = rows // n2
    i1 = outer % n1
    i0 = outer // n1
    return i0.to(tl.int64) * s0 + i1.to(tl.int64) * s1 + i2.to(tl.int64) * s2


@triton.jit
def _base(ptr, rows, first, n1, n2, s0, s1, s2, MODE: tl.constexpr):
    """Where an operand's rows begin: [ROWS, 1] pointers (MODE 2) or one pointer."""
    if MODE == 2:
        base = (ptr + _row_offset(rows, n1, n2, s0, s1, s2))[:, None]
    elif MODE == 1:
        base = ptr + _row_offset(first, n1, n2, s0, s1, s2)
    else:
        base = ptr
    return base


@triton.jit
def _load(
    base, cols, col_stride, row_mask,
    D: tl.constexpr, FULL: tl.constexpr, MODE: tl.constexpr, MAY_LACK: tl.constexpr = False,
):  # fmt: skip
    """[ROWS or 1, CHUNK] elements of an operand, in its own dtype; zero outside the row.

    FULL: the chunk lies inside the row. MAY_LACK: a single row may be none of the tensor's.
    """
    ptrs = base + cols[None, :] * col_stride
    if MODE == 1:
        if FULL:
            v = tl.load(ptrs)
        else:
            v = tl.load(ptrs, mask=(cols < D)[None, :], other=0.0)
    else:
        # One row a program is always there: no mask, and no predicate on the load.
        if FULL and row_mask.shape[0] == 1 and not MAY_LACK:
            v = tl.load(ptrs)
        elif FULL:
            v = tl.load(ptrs, mask=row_mask, other=0.0)
        else:
            inside = row_mask & (cols < D)[None, :]
            v = tl.load(ptrs, mask=inside, other=0.0)
    return v


@triton.jit
def _load_chunks(
    x_base, branch_base, row_mask,
    D: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BRANCH: tl.constexpr,
    MAY_LACK: tl.constexpr,
):  # fmt: skip
    """All chunks of x and of the branch (of x again where there is none)."""
    xs = ()
    branches = ()
    for c in tl.static_range(CHUNKS):
        cols = c * CHUNK + tl.arange(0, CHUNK)
        xs = xs + (_load(x_base, cols, 1, row_mask, D, (c + 1) * CHUNK <= D, 2, MAY_LACK),)
        if BRANCH:
            branches = branches + (
                _load(branch_base, cols, 1, row_mask, D, (c + 1) * CHUNK <= D, 2, MAY_LACK),
            )
    if not BRANCH:
        branches = xs
    return xs, branches


@triton.jit
def _store(ptr, rows, cols, v, row_mask, D: tl.constexpr, FULL: tl.constexpr):
    """Round once and store to a contiguous [rows, D] tensor."""
    inside = row_mask if FULL else row_mask & (cols < D)[None, :]
    ptrs = ptr + rows.to(tl.int64)[:, None] * D + cols[None, :]
    tl.store(ptrs, v.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _offset(factor, OFFSET: tl.constexpr):
    """OFFSET + factor. No compiler may drop the addition of 0.0, which makes 0.0 of -0.0."""
    if OFFSET != 0.0:
        factor = OFFSET + factor
    return factor


@triton.jit
def _residual(
    x, branch, branch_rstd, gate_base, gate_col, bw_base, bw_col, cols, row_mask,
    D: tl.constexpr, FULL: tl.constexpr, BRANCH: tl.constexpr, BRANCH_NORM: tl.constexpr,
    GATE_MODE: tl.constexpr, BW_MODE: tl.constexpr, BW_OFFSET: tl.constexpr,
    ROUND_SUM: tl.constexpr,
    SUM_TYPE: tl.constexpr,
):  # fmt: skip
    """s = x + gate * norm?(branch) of one chunk in fp32, rounded to SUM_TYPE first if ROUND_SUM."""
    s = x.to(tl.float32)
    if BRANCH:
        b = branch.to(tl.float32)
        if BRANCH_NORM:
            b = b * branch_rstd[:, None]
            if BW_MODE != 0:
                w = _load(bw_base, cols, bw_col, row_mask, D, FULL, BW_MODE).to(tl.float32)
                b = b * _offset(w, BW_OFFSET)
        if GATE_MODE != 0:
            b = b * _load(gate_base, cols, gate_col, row_mask, D, FULL, GATE_MODE).to(tl.float32)
        s = s + b
    if ROUND_SUM:
        s = s.to(SUM_TYPE).to(tl.float32)
    return s


@triton.jit
def _weighted(
    s, shift, drift, rstd, weight_base, weight_col, bias_base, bias_col, cols, row_mask,
    D: tl.constexpr, FULL: tl.constexpr, KIND: tl.constexpr, WEIGHT_MODE: tl.constexpr,
    BIAS_MODE: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, ROUND_NORM: tl.constexpr,
    NORM_TYPE: tl.constexpr,
):  # fmt: skip
    """The norm of one chunk with its weight and bias, fp32."""
    n = s
    if KIND == "layer":
        n = n - shift[:, None] - drift[:, None]
    n = n * rstd[:, None]
    if ROUND_NORM:
        n = n.to(NORM_TYPE).to(tl.float32)
    if WEIGHT_MODE != 0:
        w = _load(weight_base, cols, weight_col, row_mask, D, FULL, WEIGHT_MODE).to(tl.float32)
        n = n * _offset(w, WEIGHT_OFFSET)
    if BIAS_MODE != 0:
        n = n + _load(bias_base, cols, bias_col, row_mask, D, FULL, BIAS_MODE).to(tl.float32)
    return n


@triton.jit
def _modulated(
    n, scale_base, scale_col, shift_base, shift_col, cols, row_mask,
    D: tl.constexpr, FULL: tl.constexpr, SCALE_MODE: tl.constexpr, SHIFT_MODE: tl.constexpr,
    SCALE_OFFSET: tl.constexpr,
):  # fmt: skip
    """n * (offset + scale) + shift of one chunk, fp32."""
    if SCALE_MODE != 0:
        scale = _load(scale_base, cols, scale_col, row_mask, D, FULL, SCALE_MODE).to(tl.float32)
        n = n * _offset(scale, SCALE_OFFSET)
    if SHIFT_MODE != 0:
        n = n + _load(shift_base, cols, shift_col, row_mask, D, FULL, SHIFT_MODE).to(tl.float32)
    return n


@triton.jit
def fused_norm_kernel(
    x_ptr, branch_ptr, gate_ptr, bw_ptr, weight_ptr, bias_ptr,
    scale0_ptr, shift0_ptr, scale1_ptr, shift1_ptr, sum_ptr, out0_ptr, out1_ptr,
    x_s0, x_s1, x_s2, branch_s0, branch_s1, branch_s2,
    gate_s0, gate_s1, gate_s2, gate_col, bw_s0, bw_s1, bw_s2, bw_col,
    weight_s0, weight_s1, weight_s2, weight_col, bias_s0, bias_s1, bias_s2, bias_col,
    scale0_s0, scale0_s1, scale0_s2, scale0_col, shift0_s0, shift0_s1, shift0_s2, shift0_col,
    scale1_s0, scale1_s1, scale1_s2, scale1_col, shift1_s0, shift1_s1, shift1_s2, shift1_col,
    inner, blocks_per_group, n1, n2,
    D: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
    LOOP: tl.constexpr,
    RESIDENT: tl.constexpr, WIDE_ROWS: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
    EPS_KIND: tl.constexpr, BRANCH: tl.constexpr, BRANCH_NORM: tl.constexpr,
    BRANCH_EPS: tl.constexpr, GATE_MODE: tl.constexpr, BW_MODE: tl.constexpr,
    WEIGHT_MODE: tl.constexpr, BIAS_MODE: tl.constexpr, SCALE0_MODE: tl.constexpr,
    SHIFT0_MODE: tl.constexpr,
    SCALE1_MODE: tl.constexpr, SHIFT1_MODE: tl.constexpr, OUTPUTS: tl.constexpr,
    STORE_SUM: tl.constexpr,
    ROUND_SUM: tl.constexpr, SUM_TYPE: tl.constexpr, ROUND_NORM: tl.constexpr,
    NORM_TYPE: tl.constexpr,
    BW_OFFSET: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, SCALE_OFFSET: tl.constexpr,
):  # fmt: skip
    """LOOP blocks of ROWS rows, one after the other. RESIDENT keeps the rows in registers, in
    CHUNKS chunks (so that 5120 costs no lanes of 8192); otherwise the row is read again for the
    statistics and for the output.
    """
    # Roots are as exact as the widest result asks for. (What is not stored has the type of what
    # is.)
    RESULT: tl.constexpr = (
        tl.float32 if sum_ptr.dtype.element_ty == tl.float32 else out0_ptr.dtype.element_ty
    )
    pid = tl.program_id(0)
    if WIDE_ROWS:
        pid = pid.to(tl.int64)
    first = (pid // blocks_per_group) * inner
    local = (pid % blocks_per_group) * (ROWS * LOOP) + tl.arange(0, ROWS)
    rows = first + local
    row_mask = (local < inner)[:, None]

    if RESIDENT:
        # All loads stand before all stores: the compiler cannot move a load across a store.
        x_base = _base(x_ptr, rows, first, n1, n2, x_s0, x_s1, x_s2, 2)
        branch_base = _base(
            branch_ptr, rows, first, n1, n2, branch_s0, branch_s1, branch_s2, 2 if BRANCH else 0
        )
        xs, branches = _load_chunks(
            x_base, branch_base, row_mask, D, CHUNK, CHUNKS, BRANCH, LOOP > 1
        )
    for step in range(LOOP):
        gate_base = _base(gate_ptr, rows, first, n1, n2, gate_s0, gate_s1, gate_s2, GATE_MODE)
        bw_base = _base(bw_ptr, rows, first, n1, n2, bw_s0, bw_s1, bw_s2, BW_MODE)
        weight_base = _base(
            weight_ptr, rows, first, n1, n2, weight_s0, weight_s1, weight_s2, WEIGHT_MODE
        )
        bias_base = _base(bias_ptr, rows, first, n1, n2, bias_s0, bias_s1, bias_s2, BIAS_MODE)
        scale0_base = _base(
            scale0_ptr, rows, first, n1, n2, scale0_s0, scale0_s1, scale0_s2, SCALE0_MODE
        )
        shift0_base = _base(
            shift0_ptr, rows, first, n1, n2, shift0_s0, shift0_s1, shift0_s2, SHIFT0_MODE
        )
        scale1_base = _base(
            scale1_ptr, rows, first, n1, n2, scale1_s0, scale1_s1, scale1_s2, SCALE1_MODE
        )
        shift1_base = _base(
            shift1_ptr, rows, first, n1, n2, shift1_s0, shift1_s1, shift1_s2, SHIFT1_MODE
        )

        branch_rstd = tl.zeros([ROWS], tl.float32)
        # The mean is shift + drift: apart they keep the digits of a small drift beside a large
        # shift.
        shift = tl.zeros([ROWS], tl.float32)
        drift = tl.zeros([ROWS], tl.float32)
        rstd = tl.zeros([ROWS], tl.float32)

        if RESIDENT:
            if LOOP > 1:
                # The next rows are under way while these are reduced.
                ahead = first + local + ROWS
                there = ((local + ROWS < inner) & (step + 1 < LOOP))[:, None]
                x_base = _base(x_ptr, ahead, first, n1, n2, x_s0, x_s1, x_s2, 2)
                branch_base = _base(
                    branch_ptr,
                    ahead,
                    first,
                    n1,
                    n2,
                    branch_s0,
                    branch_s1,
                    branch_s2,
                    2 if BRANCH else 0,
                )
                next_xs, next_branches = _load_chunks(
                    x_base, branch_base, there, D, CHUNK, CHUNKS, BRANCH, True
                )
            if BRANCH_NORM:
                square = tl.zeros([ROWS, CHUNK], tl.float32)
                for c in tl.static_range(CHUNKS):
                    b = branches[c].to(tl.float32)
                    square += b * b
                branch_rstd = inverse_rms(tl.sum(square, 1), D, BRANCH_EPS, RESULT, "add")
            sums = ()
            total = tl.zeros([ROWS, CHUNK], tl.float32)
            for c in tl.static_range(CHUNKS):
                cols = c * CHUNK + tl.arange(0, CHUNK)
                s = _residual(
                    xs[c], branches[c], branch_rstd, gate_base, gate_col, bw_base, bw_col, cols,
                    row_mask,
                    D, (c + 1) * CHUNK <= D, BRANCH, BRANCH_NORM, GATE_MODE, BW_MODE, BW_OFFSET,
                    ROUND_SUM, SUM_TYPE,
                )  # fmt: skip
                sums = sums + (s,)
                if KIND == "rms":
                    total += s * s
                elif KIND == "layer":
                    total += s
            if KIND == "rms":
                rstd = inverse_rms(tl.sum(total, 1), D, EPS, RESULT, EPS_KIND)
            elif KIND == "layer":
                shift = tl.sum(total, 1) / D
                spread = tl.zeros([ROWS, CHUNK], tl.float32)
                for c in tl.static_range(CHUNKS):
                    d = sums[c] - shift[:, None]
                    if (c + 1) * CHUNK > D:
                        d = tl.where((c * CHUNK + tl.arange(0, CHUNK) < D)[None, :], d, 0.0)
                    spread += d * d
                rstd = inverse_rms(tl.sum(spread, 1), D, EPS, RESULT, "add")
            for c in tl.static_range(CHUNKS):
                cols = c * CHUNK + tl.arange(0, CHUNK)
                # The sum is stored while the norm's tables are on their way.
                if STORE_SUM:
                    _store(sum_ptr, rows, cols, sums[c], row_mask, D, (c + 1) * CHUNK <= D)
                if OUTPUTS > 0:
                    n = _weighted(
                        sums[c], shift, drift, rstd, weight_base, weight_col, bias_base, bias_col,
                        cols, row_mask,
                        D, (c + 1) * CHUNK <= D, KIND, WEIGHT_MODE, BIAS_MODE, WEIGHT_OFFSET,
                        ROUND_NORM,
                        NORM_TYPE,
                    )  # fmt: skip
                    out0 = _modulated(
                        n, scale0_base, scale0_col, shift0_base, shift0_col, cols, row_mask,
                        D, (c + 1) * CHUNK <= D, SCALE0_MODE, SHIFT0_MODE, SCALE_OFFSET,
                    )  # fmt: skip
                    if OUTPUTS > 1:
                        out1 = _modulated(
                            n, scale1_base, scale1_col, shift1_base, shift1_col, cols, row_mask,
                            D, (c + 1) * CHUNK <= D, SCALE1_MODE, SHIFT1_MODE, SCALE_OFFSET,
                        )  # fmt: skip
                        _store(out1_ptr, rows, cols, out1, row_mask, D, (c + 1) * CHUNK <= D)
                    _store(out0_ptr, rows, cols, out0, row_mask, D, (c + 1) * CHUNK <= D)
            if LOOP > 1:
                xs = next_xs
                branches = next_branches
        else:
            x_base = _base(x_ptr, rows, first, n1, n2, x_s0, x_s1, x_s2, 2)
            branch_base = _base(
                branch_ptr, rows, first, n1, n2, branch_s0, branch_s1, branch_s2, 2 if BRANCH else 0
            )
            if BRANCH_NORM:
                square = tl.zeros([ROWS, CHUNK], tl.float32)
                for start in range(0, D, CHUNK):
                    cols = start + tl.arange(0, CHUNK)
                    b = _load(branch_base, cols, 1, row_mask, D, D % CHUNK == 0, 2).to(tl.float32)
                    square += b * b
                branch_rstd = inverse_rms(tl.sum(square, 1), D, BRANCH_EPS, RESULT, "add")
            if KIND != "none":
                total = tl.zeros([ROWS, CHUNK], tl.float32)
                square = tl.zeros([ROWS, CHUNK], tl.float32)
                for start in range(0, D, CHUNK):
                    cols = start + tl.arange(0, CHUNK)
                    x = _load(x_base, cols, 1, row_mask, D, D % CHUNK == 0, 2)
                    branch = x
                    if BRANCH:
                        branch = _load(branch_base, cols, 1, row_mask, D, D % CHUNK == 0, 2)
                    s = _residual(
                        x, branch, branch_rstd, gate_base, gate_col, bw_base, bw_col, cols,
                        row_mask,
                        D, D % CHUNK == 0, BRANCH, BRANCH_NORM, GATE_MODE, BW_MODE, BW_OFFSET,
                        ROUND_SUM, SUM_TYPE,
                    )  # fmt: skip
                    if KIND == "layer":
                        # Sums of s - shift, shift the first chunk's mean: the row's own mean cannot
                        # cancel its variance.
                        if start == 0:
                            shift = tl.sum(s, 1) / min(CHUNK, D)
                        s = tl.where((cols < D)[None, :], s - shift[:, None], 0.0)
                        total += s
                    square += s * s
                spread = tl.sum(square, 1)
                if KIND == "layer":
                    drift = tl.sum(total, 1) / D
                    spread = tl.maximum(
                        spread - drift * drift * D, 0.0, propagate_nan=tl.PropagateNan.ALL
                    )
                rstd = inverse_rms(spread, D, EPS, RESULT, EPS_KIND)
            for start in range(0, D, CHUNK):
                cols = start + tl.arange(0, CHUNK)
                x = _load(x_base, cols, 1, row_mask, D, D % CHUNK == 0, 2)
                branch = x
                if BRANCH:
                    branch = _load(branch_base, cols, 1, row_mask, D, D % CHUNK == 0, 2)
                s = _residual(
                    x, branch, branch_rstd, gate_base, gate_col, bw_base, bw_col, cols, row_mask,
                    D, D % CHUNK == 0, BRANCH, BRANCH_NORM, GATE_MODE, BW_MODE, BW_OFFSET,
                    ROUND_SUM, SUM_TYPE,
                )  # fmt: skip
                if STORE_SUM:
                    _store(sum_ptr, rows, cols, s, row_mask, D, D % CHUNK == 0)
                if OUTPUTS > 0:
                    n = _weighted(
                        s, shift, drift, rstd, weight_base, weight_col, bias_base, bias_col, cols,
                        row_mask,
                        D, D % CHUNK == 0, KIND, WEIGHT_MODE, BIAS_MODE, WEIGHT_OFFSET, ROUND_NORM,
                        NORM_TYPE,
                    )  # fmt: skip
                    out0 = _modulated(n, scale0_base, scale0_col, shift0_base, shift0_col, cols,
                    row_mask,
                                      D, D % CHUNK == 0, SCALE0_MODE, SHIFT0_MODE,
                                      SCALE_OFFSET)  # fmt: skip
                    if OUTPUTS > 1:
                        out1 = _modulated(n, scale1_base, scale1_col, shift1_base, shift1_col,
                        cols, row_mask,
                                          D, D % CHUNK == 0, SCALE1_MODE, SHIFT1_MODE,
                                          SCALE_OFFSET)  # fmt: skip
                        _store(out1_ptr, rows, cols, out1, row_mask, D, D % CHUNK == 0)
                    _store(out0_ptr, rows, cols, out0, row_mask, D, D % CHUNK == 0)
        if LOOP > 1:
            local += ROWS
            row_mask = (local < inner)[:, None]
            # Rows that are not there read the last one's tables, and are not stored.
            rows = first + tl.minimum(local, inner - 1)
