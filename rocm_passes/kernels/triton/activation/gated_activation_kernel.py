"""act(gate) * x in one pass over memory, of rows that may lie apart."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton kernels carry no Python types: their arguments are device values.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rocm_passes.kernels.triton.common import launch_warps
from rocm_passes.kernels.triton.launch import launch

#: 128 lanes then move 16 bytes each of a 16-bit dtype.
BLOCK, WARPS = 1024, 4


@triton.jit
def gated_activation_kernel(
    gate, x, y, columns, gate_stride, x_stride, ACT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    g = tl.load(gate + row * gate_stride + at, mask=inside).to(tl.float32)
    v = tl.load(x + row * x_stride + at, mask=inside).to(tl.float32)
    if ACT == "silu":
        a = g * tl.sigmoid(g)
    elif ACT == "gelu":
        a = 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    else:
        # 1 + tanh(u) is 2 * sigmoid(2 * u), where u = sqrt(2 / pi) * (g + 0.044715 * g^3).
        a = g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    tl.store(y + row * columns + at, (a * v).to(y.dtype.element_ty), mask=inside)


def gated_activation(gate: Tensor, x: Tensor, act: str) -> Tensor:
    """gate, x: of one shape, dtype and device, of any strides. Returns a contiguous tensor."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        rows, columns = y.numel() // y.shape[-1], y.shape[-1]
        gates, values = _rows(gate), _rows(x)
        grid = (rows, triton.cdiv(columns, BLOCK))
        launch(
            gated_activation_kernel,
            grid,
            gates,
            values,
            y,
            columns,
            gates.stride(0),
            values.stride(0),
            ACT=act,
            BLOCK=BLOCK,
            num_warps=launch_warps(WARPS, y),
        )
    return y


def _rows(t: Tensor) -> Tensor:
    """As rows of unit stride, which half of a linear layer's result is without a copy."""
    flat = t.reshape(-1, t.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()
