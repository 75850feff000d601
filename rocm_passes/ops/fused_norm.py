"""Residual, norm and modulation of rows, in one pass: what stands between the matrix products of a block.

    s     = x + gate * rms_norm?(branch) * (branch_weight_offset + branch_weight)
    n     = norm(s) * (weight_offset + weight) + bias
    out_k = n * (scale_offset + scale_k) + shift_k

Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, arXiv:2212.09748 (adaLN).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.layer_norm import no_gain, too_wide
from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.ops.rms_norm import epsilon
from rocm_passes.target import Target, needs_aiter, needs_import, needs_triton

SCHEMA = (
    "(Tensor x, Tensor? branch, Tensor? gate, bool branch_norm, Tensor? branch_weight, "
    "float branch_weight_offset, Tensor? branch_eps_tensor, float branch_eps, ScalarType sum_dtype, "
    "bool keep_sum, str kind, Tensor? weight, Tensor? bias, Tensor? eps_tensor, float eps, float weight_offset, "
    "ScalarType? round_to, ScalarType? round_product, Tensor? scale0, Tensor? shift0, Tensor? scale1, "
    "Tensor? shift1, float scale_offset, int outputs, ScalarType out_dtype, bool rounds_between) -> Tensor[]"
)


def reference(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    branch_norm: bool,
    branch_weight: Tensor | None,
    branch_weight_offset: float,
    branch_eps_tensor: Tensor | None,
    branch_eps: float,
    sum_dtype: torch.dtype,
    keep_sum: bool,
    kind: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps_tensor: Tensor | None,
    eps: float,
    weight_offset: float,
    round_to: torch.dtype | None,
    round_product: torch.dtype | None,
    scale0: Tensor | None,
    shift0: Tensor | None,
    scale1: Tensor | None,
    shift1: Tensor | None,
    scale_offset: float,
    outputs: int,
    out_dtype: torch.dtype,
    rounds_between: bool,
) -> list[Tensor]:
    """Plain torch, in fp32.

    x, branch: [..., D], of one shape. gate, scales, shifts: broadcast to it. weight, bias, branch_weight: [D].
    branch_norm: the branch is RMS-normalised first. sum_dtype: s is rounded to it before the norm reads it.
    kind: "rms", "layer", or "none" (the sum alone). eps_tensor, branch_eps_tensor: 0-d, in place of the floats.
    round_to: the normalised value is rounded to this dtype before the weight, or None.
    round_product: the value is rounded to this dtype before the bias, or None.
    outputs: how many (scale, shift) pairs give a result, 0 for kind "none".
    rounds_between: the graph rounds between these steps; lowerings say in their notes that they do not.
    Returns [s if keep_sum, out_0, out_1], contiguous; s of sum_dtype, the others of out_dtype.
    """
    s = x.float()
    if branch is not None:
        b = branch.float()
        if branch_norm:
            b = b * torch.rsqrt(b.square().mean(-1, keepdim=True) + epsilon(branch_eps_tensor, branch_eps))
            b = b if branch_weight is None else b * (branch_weight.float() + branch_weight_offset)
        s = s + (b if gate is None else b * gate.float())
        s = s.to(sum_dtype)
    results = [s.contiguous()] if keep_sum else []
    if kind == "none":
        return results
    s = s.float()
    if kind == "layer":
        n = F.layer_norm(s, s.shape[-1:], eps=epsilon(eps_tensor, eps))
    else:
        n = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + epsilon(eps_tensor, eps))
    if round_to is not None:
        n = n.to(round_to).float()
    if weight is not None:
        n = n * (weight.float() + weight_offset)
    if bias is not None:
        n = n if round_product is None else n.to(round_product).float()
        n = n + bias.float()
    for scale, shift in ((scale0, shift0), (scale1, shift1))[:outputs]:
        out = n if scale is None else n * (scale.float() + scale_offset)
        out = out if shift is None else out + shift.float()
        results.append(out.to(out_dtype).contiguous())
    return results


def fake(*values: Any) -> list[Tensor]:
    given = dict(zip(PARAMETERS, values, strict=True))
    x = given["x"]
    dtypes = [given["sum_dtype"]] if given["keep_sum"] else []
    dtypes += [given["out_dtype"]] * given["outputs"]
    return [torch.empty(x.shape, dtype=dtype, device=x.device) for dtype in dtypes]


def _triton(*values: Any) -> list[Tensor]:
    from rocm_passes.kernels.triton.norms import norm

    a = dict(zip(PARAMETERS, values, strict=True))
    pairs = ((a["scale0"], a["shift0"]), (a["scale1"], a["shift1"]))[: a["outputs"]]
    # A sum that the graph rounds to another dtype than x's is stored even where nobody reads it: the
    # kernel takes the dtype of the rounding from it.
    stored = a["keep_sum"] or (a["branch"] is not None and a["sum_dtype"] is not a["x"].dtype)
    outs, total = norm.fused_norm(
        a["x"],
        kind=a["kind"],
        eps=epsilon(a["eps_tensor"], a["eps"]),
        branch=a["branch"],
        gate=a["gate"],
        branch_weight=a["branch_weight"],
        branch_weight_offset=a["branch_weight_offset"],
        branch_eps=epsilon(a["branch_eps_tensor"], a["branch_eps"]) if a["branch_norm"] else None,
        weight=a["weight"],
        bias=a["bias"],
        weight_offset=a["weight_offset"],
        round_before_weight=a["round_to"] is not None,
        modulations=[] if all(t is None for pair in pairs for t in pair) else pairs,
        scale_offset=a["scale_offset"],
        out_dtype=a["out_dtype"],
        sum_dtype=a["sum_dtype"] if stored else None,
        round_sum=a["branch"] is not None,
    )
    return [total, *outs] if a["keep_sum"] and total is not None else outs


def _triton_refuses(
    x: Tensor,
    eps_tensor: Tensor | None,
    branch_eps_tensor: Tensor | None,
    round_to: torch.dtype | None,
    **_: Any,
) -> str | None:
    if any(t is not None and t.device.type != "cpu" for t in (eps_tensor, branch_eps_tensor)):
        return "eps is a tensor on the GPU: reading it would stall"
    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    return too_wide(x)


def _triton_note(
    target: Target, round_product: torch.dtype | None, rounds_between: bool, **_: Any
) -> str | None:
    steps = ["gate, norm and modulation"] if rounds_between else []
    steps += ["weight and bias"] if round_product is not None else []
    if steps:
        return f"{', '.join(steps)} are computed in fp32 and rounded once, where the graph rounds each"
    return None


#: Columns and elements from which on a chain pays: in blocks on an H200 it does from 512 x 3072 on (FLUX's and
#: Qwen-Image's text stream); smaller ones have not been measured.
MIN_WIDTH = 1024
MIN_ELEMENTS = 2**20
#: Rows from which on a chain with a norm of the branch pays at both widths measured (2304 and 3840, on an H200): 0.73
#: to 1.00 of Inductor's time, with Z-Image's norm behind, with Gemma's and with none. Of fewer rows 0.78 to 1.20.
MIN_ROWS_WITH_BRANCH_NORM = 3072


def _triton_pays(
    target: Target,
    x: Tensor,
    branch: Tensor | None,
    kind: str,
    branch_norm: bool,
    scale0: Tensor | None,
    **_: Any,
) -> Verdict:
    # Blocks and sites on an H200 (docs/performance.md). LayerNorm: Qwen-Image's four chains 75 -> 48 us of the device.
    # RMSNorm: with a norm of the branch (Z-Image) 90 -> 64 us; without (LTX) Inductor's own code was the faster one.
    no = no_gain(target, x, MIN_WIDTH, MIN_ELEMENTS)
    if no is not None:
        return no
    rows = math.prod(x.shape[:-1])
    if branch_norm and kind != "layer" and rows < MIN_ROWS_WITH_BRANCH_NORM:
        return Verdict(
            False,
            f"with a norm of the branch and {rows} rows, below {MIN_ROWS_WITH_BRANCH_NORM}, Inductor's own code was "
            "about as fast or faster on an H200",
        )
    if branch_norm or (kind == "layer" and (branch is not None or scale0 is not None)):
        return Verdict(True, f"one pass over memory for Inductor's two or more ({measured(target)})")
    return Verdict(False, "with an RMSNorm Inductor's own code was as fast or faster on an H200")


def _aiter(*values: Any) -> list[Tensor]:
    from rocm_passes.kernels.aiter import rms_norm

    a = dict(zip(PARAMETERS, values, strict=True))
    out, total = rms_norm.add_rms_norm(
        a["x"],
        a["branch"],
        a["weight"].reshape(-1),
        epsilon(a["eps_tensor"], a["eps"]),
        round_before_weight=a["round_to"] is not None,
    )
    return [total, out] if a["keep_sum"] else [out]


def _aiter_refuses(**a: Any) -> str | None:
    from rocm_passes.kernels.aiter import rms_norm

    x, branch, weight, round_to = a["x"], a["branch"], a["weight"], a["round_to"]
    if a["kind"] != "rms" or branch is None:
        return "aiter fuses a residual with an RMSNorm only"
    if a["gate"] is not None or a["branch_norm"]:
        return "aiter adds the residual as it is: no gate, no norm of the branch"
    if a["scale0"] is not None or a["outputs"] != 1:
        return "aiter has no modulation after the norm"
    if weight is None:
        return "the norm has no weight, and aiter's needs one"
    if a["weight_offset"]:
        return "aiter's rms_norm has no (1 + weight) form"
    if a["bias"] is not None:
        return "aiter's rms_norm has no bias"
    if not x.dtype == a["sum_dtype"] == a["out_dtype"]:
        return f"x is {x.dtype}, the sum {a['sum_dtype']}, the result {a['out_dtype']}; aiter wants one dtype"
    if round_to not in (None, x.dtype):
        return f"the graph rounds to {round_to} before the weight, and x is {x.dtype}"
    if a["eps_tensor"] is not None and a["eps_tensor"].device.type != "cpu":
        return "eps is a tensor on the GPU: reading it would stall"
    return rms_norm.add_refusal(
        x, branch, weight.reshape(-1), a["eps"], round_before_weight=round_to is not None
    )


def _aiter_note(target: Target, x: Tensor, round_to: torch.dtype | None, **_: Any) -> str | None:
    from rocm_passes.kernels.aiter import rms_norm

    return rms_norm.add_numerics_note(x, arch=target.arch, round_before_weight=round_to is not None)


def _aiter_pays(target: Target, x: Tensor, **_: Any) -> Verdict:
    if isinstance(x.shape[-1], int) and x.shape[-1] >= MIN_WIDTH:
        return Verdict(
            True,
            "rule from results published for MI300-class GPUs (sglang#24360); not measured on this machine",
        )
    return Verdict(False, "at a small hidden size Inductor is the faster one (TensorRT-LLM#11798)")


PARAMETERS = tuple(reference.__annotations__)[:-1]

OPERATOR = Operator(
    "fused_norm",
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
