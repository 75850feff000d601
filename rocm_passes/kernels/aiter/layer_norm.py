"""LayerNorm over the last dimension, alone or of a sum: aiter's `layernorm2d_fwd` and
`layernorm2d_fwd_with_add`, which are Composable Kernel's (CK).

Source: aiter/ops/norm.py, csrc/py_itfs_ck/norm_kernels.cu. CK supports the CDNA architectures
(gfx9) only.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.layer_norm import LAYER_NORM, LayerNorm
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of `x` [..., C] with `weight` and `bias` [C] of the same dtype; float16 or
    bfloat16.

    aiter wants both: for one that is missing it gets ones or zeros. Returns a fresh contiguous
    tensor of x's shape and dtype. Raises AiterContractError instead of calling aiter with what it
    does not take.
    """
    contract.enforce("layernorm2d_fwd", refusal(x, weight, bias))
    if x.numel() == 0:
        return x.new_empty(x.shape)
    from aiter.ops.norm import layernorm2d_fwd

    with contract.device_guard(x):
        out: Tensor = layernorm2d_fwd(
            contract.rows(x),
            x.new_ones(x.shape[-1]) if weight is None else weight,
            x.new_zeros(x.shape[-1]) if bias is None else bias,
            eps,
        )
    return out.reshape(x.shape).contiguous()


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`x + residual` [..., C] and its LayerNorm, all of one dtype; float16 or bfloat16.

    Returns (norm, sum), both fresh, contiguous and of x's shape and dtype. Raises
    AiterContractError instead of calling aiter with what it does not take.
    """
    contract.enforce("layernorm2d_fwd_with_add", refusal(x, weight, bias, residual))
    out, total = x.new_empty(x.shape), x.new_empty(x.shape)
    if x.numel() == 0:
        return out, total
    from aiter.ops.norm import layernorm2d_fwd_with_add

    with contract.device_guard(x):
        layernorm2d_fwd_with_add(
            contract.rows(out),
            contract.rows(x),
            contract.rows(residual),
            contract.rows(total),
            x.new_ones(x.shape[-1]) if weight is None else weight,
            x.new_zeros(x.shape[-1]) if bias is None else bias,
            eps,
        )
    return out, total


def refusal(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
) -> str | None:
    """Why `layer_norm` can not take this call, with a residual `add_layer_norm`; None if it can."""
    return next(_violations(x, residual, weight, bias), None)


def numerics_note(x: Tensor) -> str | None:
    """Where `layer_norm` computes otherwise than the graph did."""
    return contract.joined(_notes(x))


def _violations(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Iterator[str]:
    yield from contract.available(
        "layernorm2d_fwd" if residual is None else "layernorm2d_fwd_with_add"
    )
    if contract.without_ck():
        yield "ENABLE_CK=0: aiter has no LayerNorm without Composable Kernel"
    affine = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
    yield from contract.placement({**inputs, **affine})
    arch = contract.architecture(x.device)
    if arch is not None and not arch.startswith("gfx9"):
        yield f"the GPU is {arch}: aiter's LayerNorm runs on gfx9 only"
    yield from contract.norm_inputs(x, residual, affine, contract.HALF_DTYPES)


def _notes(x: Tensor) -> Iterator[str]:
    yield (
        "aiter's LayerNorm leaves its rounding to Composable Kernel, which does not say how it "
        "rounds"
    )
    yield from contract.denormal_note(x.dtype)


def _run(call: LayerNorm) -> Tensor:
    return layer_norm(call.x, call.weight, call.bias, call.eps)


def _refuses(call: LayerNorm, target: Target) -> str | None:
    if call.out_dtype is not call.x.dtype:
        return f"the result is {call.out_dtype} and x is {call.x.dtype}; aiter returns x's dtype"
    return refusal(call.x, call.weight, call.bias)


def _note(call: LayerNorm, target: Target) -> str | None:
    return numerics_note(call.x)


AITER = LAYER_NORM.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=_refuses, note=_note, run=_run)
)
