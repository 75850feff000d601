"""RMSNorm over the last dimension: y = x * rsqrt(mean(x^2) + eps) * (offset + weight) + bias.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rocm_passes.errors import ContractError
from rocm_passes.ops.operator import Call, Operator, same_bits


@dataclass(frozen=True)
class RmsNorm(Call):
    """RMSNorm of x [..., D]. Returns [..., D] of out_dtype, contiguous.

    x: any float dtype and strides. weight, bias: [D] or broadcast to it, any float dtype, or None.
    eps_tensor: 0-d; takes eps's place (dynamic shapes make module constants into tensors).
    round_to: the normalised value is rounded to this dtype before the weight (diffusers' RMSNorm),
    or None.
    round_product: the value is rounded to this dtype before the bias, or None.
    eps_kind: how eps guards the inverse root, as `inverse_root` has it.
    rounds_between: the graph rounds elsewhere, or takes these steps in another order; lowerings
    note it.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps_tensor: Tensor | None
    eps: float
    weight_offset: float
    round_to: torch.dtype | None
    round_product: torch.dtype | None
    out_dtype: torch.dtype
    eps_kind: str = "add"
    rounds_between: bool = False


def reference(call: RmsNorm) -> Tensor:
    """Plain torch, in fp32 (fp64 for fp64 input)."""
    check_rows(call.x)
    compute = torch.float64 if call.x.dtype is torch.float64 else torch.float32
    x = call.x.to(compute)
    squares = x.square().mean(-1, keepdim=True)
    y = x * inverse_root(squares, epsilon(call.eps_tensor, call.eps), call.eps_kind)
    if call.round_to is not None:
        y = y.to(call.round_to).to(compute)
    if call.weight is not None:
        y = y * (call.weight.to(compute).reshape(-1) + call.weight_offset)
    if call.bias is not None:
        y = y if call.round_product is None else y.to(call.round_product).to(compute)
        y = y + call.bias.to(compute).reshape(-1)
    return y.to(call.out_dtype).contiguous()


def fake(call: RmsNorm) -> Tensor:
    return torch.empty(call.x.shape, dtype=call.out_dtype, device=call.x.device)


def check_rows(x: Tensor) -> None:
    """Raise where x has no rows: a weight would give the result dims that x does not have."""
    if x.dim() == 0:
        raise ContractError("x has no dims: a norm of rows needs at least one")


def inverse_root(squares: Tensor, eps: float, kind: str) -> Tensor:
    """Of the mean of squares, guarded by eps.

    kind: "add" (rsqrt(m + eps)), "clamp" (rsqrt(max(m, eps))) or "after_root" (1 / (sqrt(m) +
    eps)).
    """
    if kind == "add":
        return torch.rsqrt(squares + eps)
    if kind == "clamp":
        return torch.rsqrt(squares.clamp_min(eps))
    assert kind == "after_root", kind
    return 1 / (squares.sqrt() + eps)


def epsilon(eps_tensor: Tensor | None, eps: float) -> float:
    return eps if eps_tensor is None else float(eps_tensor.item())


def eps_on_gpu(*eps_tensors: Tensor | None) -> str | None:
    """Why a kernel that takes eps as a number refuses the call, or None."""
    if any(t is not None and t.device.type != "cpu" for t in eps_tensors):
        return "eps is a tensor on the GPU: reading it would stall"
    return None


def another_eps(kind: str) -> str | None:
    """Why a kernel that adds eps to the mean of squares refuses the call, or None."""
    return (
        None
        if kind == "add"
        else f"eps guards the root by {kind!r}; the kernel adds it to the mean"
    )


def rounds_unlike(round_to: torch.dtype | None, x: Tensor) -> str | None:
    """Why a kernel that rounds to x's dtype before the weight refuses the call, or None."""
    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    return None


RMS_NORM = Operator("rms_norm", RmsNorm, reference, fake, other_bits=same_bits)
