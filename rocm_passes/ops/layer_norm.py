"""LayerNorm over the last dimension: y = (x - mean) * rsqrt(var + eps) * weight + bias.

Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.target import Target, needs_aiter, needs_import, needs_triton

SCHEMA = "(Tensor x, Tensor? weight, Tensor? bias, float eps, ScalarType out_dtype) -> Tensor"


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input).

    x: [..., D], any float dtype and strides. weight, bias: [D], any float dtype, or None.
    Returns [..., D] of out_dtype, contiguous.
    """
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    weight, bias = (None if t is None else t.to(compute) for t in (weight, bias))
    return F.layer_norm(x.to(compute), x.shape[-1:], weight, bias, eps).to(out_dtype).contiguous()


def fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=out_dtype, device=x.device)


def _triton(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> Tensor:
    from rocm_passes.kernels.triton.norms import norm

    outs, _ = norm.fused_norm(x, kind="layer", eps=eps, weight=weight, bias=bias, out_dtype=out_dtype)
    return outs[0]


def _triton_refuses(x: Tensor, **_: Any) -> str | None:
    return too_wide(x)


def too_wide(x: Tensor) -> str | None:
    """The width that the Triton norms end at."""
    from rocm_passes.kernels.triton.norms.norm_plan import MAX_WIDTH

    width = x.shape[-1]
    if isinstance(width, int) and width > MAX_WIDTH:
        return f"rows of {width} elements; at most {MAX_WIDTH} are taken"
    return None


def no_gain(target: Target, x: Tensor, width: int, elements: int) -> Verdict | None:
    """The verdict on a norm of rows below the size from which on it was measured to pay, or on a CPU; else None."""
    if not target.is_gpu:
        return Verdict(False, "on a CPU Inductor's own code is faster")
    columns, size = x.shape[-1], math.prod(x.shape)
    if not isinstance(columns, int) or not isinstance(size, int):
        return Verdict(False, "its size is not known at compile time")
    if columns < width or size < elements:
        return Verdict(False, f"below {width} columns or {elements} elements it was not measured to pay")
    return None


#: Columns and elements from which on the kernel pays. Between two matrix products on an H200, with weight and bias:
#: 4608 x 3072 0.052 ms for Inductor's 0.078, 32760 x 5120 0.445 for 0.584.
MIN_WIDTH = 1024
MIN_ELEMENTS = 2**22


def _triton_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    no = no_gain(target, x, MIN_WIDTH, MIN_ELEMENTS)
    if no is not None:
        return no
    return Verdict(True, f"one pass over memory for Inductor's two ({measured(target)})")


def _aiter(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> Tensor:
    from rocm_passes.kernels.aiter import layer_norm

    return layer_norm.layer_norm(x, weight, bias, eps)


def _aiter_refuses(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> str | None:
    from rocm_passes.kernels.aiter import layer_norm

    if out_dtype is not x.dtype:
        return f"the result is {out_dtype} and x is {x.dtype}; aiter returns x's dtype"
    return layer_norm.refusal(x, weight, bias, eps)


def _aiter_note(target: Target, x: Tensor, **_: Any) -> str | None:
    from rocm_passes.kernels.aiter import layer_norm

    return layer_norm.numerics_note(x, arch=target.arch)


def _aiter_pays(target: Target, **_: Any) -> Verdict:
    return Verdict(
        False, "nothing is published of aiter's LayerNorm against Inductor, and it was not measured"
    )


OPERATOR = Operator(
    "layer_norm",
    SCHEMA,
    reference,
    fake,
    lowerings=(
        Lowering(
            "aiter",
            requires=(needs_aiter,),
            refuses=_aiter_refuses,
            note=_aiter_note,
            pays=_aiter_pays,
            run=_aiter,
        ),
        Lowering(
            "triton",
            requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.norm")),
            refuses=_triton_refuses,
            pays=_triton_pays,
            run=_triton,
            launches=True,
        ),
    ),
)
