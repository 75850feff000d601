"""Residual, norm and modulation of rows, in one pass: what stands between the matrix products of a
block.

    s     = x + gate * rms_norm?(branch) * (branch_weight_offset + branch_weight)
    n     = norm(s) * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k

Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, arXiv:2212.09748 (adaLN).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.fx.nodes import known
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.rms_norm import check_rows, epsilon, inverse_root
from rocm_passes.target import Target


@dataclass(frozen=True)
class FusedNorm(Call):
    """Returns [s if keep_sum, out_0, out_1], contiguous; s of sum_dtype, the others of out_dtype.

    x, branch: [..., D], of one shape. gate, scales, shifts: broadcast to it. weight, bias,
    branch_weight: [D].
    branch_norm: the branch is RMS-normalised first. sum_dtype: s is rounded to it before the norm
    reads it.
    kind: "rms", "layer", or "none" (the sum alone). eps_tensor, branch_eps_tensor: 0-d, in place of
    the floats.
    round_to: the normalised value is rounded to this dtype before the weight, or None.
    round_product: the value is rounded to this dtype before the bias, or None.
    outputs: how many (scale, shift) pairs give a result, 0 for kind "none".
    eps_kind: of an RMSNorm behind the sum, as rms_norm has it.
    rounds_between: the graph rounds between these steps; lowerings say in their notes that they do
    not.
    """

    x: Tensor
    branch: Tensor | None
    gate: Tensor | None
    branch_norm: bool
    branch_weight: Tensor | None
    branch_weight_offset: float
    branch_eps_tensor: Tensor | None
    branch_eps: float
    sum_dtype: torch.dtype
    keep_sum: bool
    kind: str
    weight: Tensor | None
    bias: Tensor | None
    eps_tensor: Tensor | None
    eps: float
    weight_offset: float
    round_to: torch.dtype | None
    round_product: torch.dtype | None
    scale0: Tensor | None
    shift0: Tensor | None
    scale1: Tensor | None
    shift1: Tensor | None
    scale_offset: float
    outputs: int
    out_dtype: torch.dtype
    rounds_between: bool
    eps_kind: str = "add"

    @property
    def results(self) -> int:
        return int(self.keep_sum) + self.outputs

    @property
    def modulations(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """One (scale, shift) pair for each output."""
        return ((self.scale0, self.shift0), (self.scale1, self.shift1))[: self.outputs]


def reference(call: FusedNorm) -> list[Tensor]:
    """Plain torch, in fp32."""
    check_rows(call.x)
    s = _sum(call)
    results = [s.contiguous()] if call.keep_sum else []
    if call.kind == "none":
        return results
    n = _norm(call, s.float())
    for scale, shift in call.modulations:
        out = n if scale is None else n * (scale.float() + call.scale_offset)
        out = out if shift is None else out + shift.float()
        results.append(out.to(call.out_dtype).contiguous())
    return results


def _sum(call: FusedNorm) -> Tensor:
    s = call.x.float()
    if call.branch is None:
        return s
    b = call.branch.float()
    if call.branch_norm:
        eps = epsilon(call.branch_eps_tensor, call.branch_eps)
        b = b * torch.rsqrt(b.square().mean(-1, keepdim=True) + eps)
        if call.branch_weight is not None:
            b = b * (call.branch_weight.float() + call.branch_weight_offset)
    s = s + (b if call.gate is None else b * call.gate.float())
    return s.to(call.sum_dtype)


def _norm(call: FusedNorm, s: Tensor) -> Tensor:
    eps = epsilon(call.eps_tensor, call.eps)
    if call.kind == "layer":
        n = F.layer_norm(s, s.shape[-1:], eps=eps)
    else:
        n = s * inverse_root(s.square().mean(-1, keepdim=True), eps, call.eps_kind)
    if call.round_to is not None:
        n = n.to(call.round_to).float()
    if call.weight is not None:
        n = n * (call.weight.float() + call.weight_offset)
    if call.bias is not None:
        n = n if call.round_product is None else n.to(call.round_product).float()
        n = n + call.bias.float()
    return n


def fake(call: FusedNorm) -> list[Tensor]:
    dtypes = [call.sum_dtype] if call.keep_sum else []
    dtypes += [call.out_dtype] * call.outputs
    return [torch.empty(call.x.shape, dtype=dtype, device=call.x.device) for dtype in dtypes]


def other_bits(call: FusedNorm, target: Target) -> str | None:
    """A LayerNorm's own weight and bias are applied apart, where ATen's LayerNorm applies them.

    ATen lays a sum out as its first operand, and takes the mean of rows by how they lie. The
    reference adds in an order of its own, which is none of the mean's where all lie row by row.
    """
    if call.kind == "rms" and call.branch is not None:
        added = call.x, call.branch, call.gate
        if not all(t is None or _row_by_row(t) for t in added):
            return "its sum may lie otherwise than the graph's, and so be averaged in another order"
    if call.kind != "layer":
        return None
    if call.weight is not None or call.bias is not None:
        return "its LayerNorm's weight and bias may be rounded apart"
    return None if call.x.dtype is torch.float32 else f"x is {call.x.dtype}"


def _row_by_row(t: Tensor) -> bool:
    """Does a later dim of more than one element never lie farther apart than an earlier one?"""
    dims = zip(t.shape, t.stride(), strict=True)
    counted = [stride for size, stride in dims if not known(size == 1) and not known(stride == 0)]
    return all(known(outer > inner) for outer, inner in pairwise(counted))


FUSED_NORM = Operator(
    "fused_norm", FusedNorm, reference, fake, results=(1, 2, 3), other_bits=other_bits
)
