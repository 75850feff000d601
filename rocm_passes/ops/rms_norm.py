"""RMSNorm over the last dimension: y = x * rsqrt(mean(x^2) + eps) * (offset + weight) + bias.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops.operator import Lowering, Operator, Verdict
from rocm_passes.target import Target, needs_aiter, needs_import, needs_triton

SCHEMA = (
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? eps_tensor, float eps, float weight_offset, "
    "ScalarType? round_to, ScalarType? round_product, ScalarType out_dtype) -> Tensor"
)


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input).

    x: [..., D], any float dtype and strides. weight, bias: [D] or broadcast to it, any float dtype, or None.
    eps_tensor: 0-d; takes eps's place (dynamic shapes make module constants into tensors).
    round_to: the normalised value is rounded to this dtype before the weight (diffusers' RMSNorm), or None.
    round_product: the value is rounded to this dtype before the bias, or None.
    Returns [..., D] of out_dtype, contiguous.
    """
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    wide = x.to(compute)
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon(eps_tensor, eps))
    if round_to is not None:
        y = y.to(round_to).to(compute)
    if weight is not None:
        y = y * (weight.to(compute).reshape(-1) + weight_offset)
    if bias is not None:
        y = y if round_product is None else y.to(round_product).to(compute)
        y = y + bias.to(compute).reshape(-1)
    return y.to(out_dtype).contiguous()


def epsilon(eps_tensor: Tensor | None, eps: float) -> float:
    return eps if eps_tensor is None else float(eps_tensor.item())


def fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    return torch.empty(x.shape, dtype=out_dtype, device=x.device)


def _triton(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    from rocm_passes.kernels.triton.norms import norm

    return norm.rms_norm(
        x,
        None if weight is None else weight.reshape(-1),
        epsilon(eps_tensor, eps),
        bias=None if bias is None else bias.reshape(-1),
        weight_offset=weight_offset,
        round_before_weight=round_to is not None,
        out_dtype=out_dtype,
    )


def _triton_refuses(
    x: Tensor, eps_tensor: Tensor | None, round_to: torch.dtype | None, **_: Any
) -> str | None:
    if x.dtype is torch.float64:
        return "x is float64"
    if eps_tensor is not None and eps_tensor.device.type != "cpu":
        return "eps is a tensor on the GPU: reading it would stall"
    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    return None


def _triton_note(target: Target, round_product: torch.dtype | None, **_: Any) -> str | None:
    if round_product is not None:
        return "weight and bias are applied in fp32 and rounded once, where the graph rounds each"
    return None


def _triton_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    # Measured on an H200 (docs/performance.md): Inductor's own kernel is within 1.15x of the memory floor.
    return Verdict(False, "Inductor fuses a plain RMSNorm with its neighbours at least as fast")


def _aiter(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    from rocm_passes.kernels.aiter import rms_norm

    assert weight is not None
    return rms_norm.rms_norm(
        x, weight.reshape(-1), epsilon(eps_tensor, eps), round_before_weight=round_to is not None
    )


def _aiter_refuses(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    out_dtype: torch.dtype,
) -> str | None:
    from rocm_passes.kernels.aiter import rms_norm

    if weight is None:
        return "the norm has no weight, and aiter's needs one"
    if bias is not None:
        return "aiter's rms_norm has no bias"
    if weight_offset:
        return "aiter's rms_norm has no (1 + weight) form"
    if out_dtype is not x.dtype:
        return f"the result is {out_dtype} and x is {x.dtype}; aiter returns x's dtype"
    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    if eps_tensor is not None and eps_tensor.device.type != "cpu":
        return "eps is a tensor on the GPU: reading it would stall"
    return rms_norm.refusal(x, weight, eps, round_before_weight=round_to is not None)


def _aiter_note(
    target: Target, x: Tensor, weight: Tensor | None, round_to: torch.dtype | None, **_: Any
) -> str | None:
    from rocm_passes.kernels.aiter import rms_norm

    return rms_norm.numerics_note(x, arch=target.arch, round_before_weight=round_to is not None)


def _aiter_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    # Not run by us on AMD hardware. Published: 430.6 -> 291.4 us against Inductor at full width
    # (sgl-project/sglang#24360); at head size 128 Inductor was faster (NVIDIA/TensorRT-LLM#11798).
    if isinstance(x.shape[-1], int) and x.shape[-1] >= 1024:
        return Verdict(
            True,
            "rule from published results on MI300-class GPUs (sglang#24360); not measured on this machine",
        )
    return Verdict(False, "at a small hidden size Inductor is the faster one (TensorRT-LLM#11798)")


OPERATOR = Operator(
    "rms_norm",
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
            note=_triton_note,
            pays=_triton_pays,
            run=_triton,
            launches=True,
        ),
    ),
)
