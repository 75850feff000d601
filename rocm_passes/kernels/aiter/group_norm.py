"""GroupNorm of contiguous tensors through aiter's `groupnorm_run` (up to 0.1.18: `_groupnorm_run`).

Source: aiter/ops/groupnorm.py and csrc/kernels/groupnorm.cu. aiter keeps one workspace per device
for all
streams: two GroupNorms at once on two streams of a device would share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from rocm_passes.kernels.aiter import contract
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.frames import has_front
from rocm_passes.ops.group_norm import GROUP_NORM, GroupNorm
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target

# From this many blocks of 8192 elements in a group on, aiter's kernel takes four elements at a time
# and gives all four the weight and bias of the first one's channel.
BLOCK = 8192
BLOCKS_OF_VECTOR_PATH = 16
# One row of thread blocks per sample and group; HIP's grid has no more than these in its second
# dimension.
GRID_Y_MAX = 65535
# aiter's loop steps by as many elements at most, in 32 bits.
LOOP_STEP = 2**24
GROUP_MAX = 2**32 - LOOP_STEP


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """GroupNorm of contiguous `x` [N, C, *spatial], `weight` and `bias` [C], all of one dtype.

    float16, bfloat16 or float32. Returns a fresh contiguous tensor of x's shape and dtype. Raises
    AiterContractError instead of calling aiter with what it does not take.
    """
    contract.enforce("groupnorm_run", refusal(x, num_groups, weight, bias))
    if x.numel() == 0:
        return x.new_empty(x.shape)
    from aiter.ops import groupnorm

    run = groupnorm.groupnorm_run if contract.has("groupnorm_run") else groupnorm._groupnorm_run
    with contract.device_guard(x):
        out: Tensor = run(x, num_groups, weight, bias, eps)
    return out


def refusal(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why `group_norm` can not take this call; None if it can."""
    return next(_violations(x, num_groups, weight, bias), None)


def numerics_note(x: Tensor) -> str | None:
    """Where `group_norm` computes otherwise than the graph did."""
    return contract.joined(_notes(x))


def _violations(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None
) -> Iterator[str]:
    yield from contract.available("groupnorm_run", "functional_groupnorm")
    if weight is None or bias is None:
        yield (
            f"the {'weight' if weight is None else 'bias'} is missing: aiter's GroupNorm needs both"
        )
        return
    yield from contract.placement({"x": x, "weight": weight, "bias": bias})
    yield from contract.dtype("x", x, contract.FLOAT_DTYPES)
    if x.dim() < 2:
        yield f"x has shape {contract.shape_name(x)}: aiter wants samples and channels"
    channels = x.shape[1]
    if channels == 0:
        yield "x has 0 channels: aiter wants a weight that is not empty"
    if num_groups < 1 or channels % num_groups:
        yield f"{channels} channels do not divide into {num_groups} groups"
    yield from contract.vector("weight", weight, channels, "x", x)
    yield from contract.vector("bias", bias, channels, "x", x)
    if not x.is_contiguous():
        yield f"x has strides {tuple(x.stride())}: aiter would copy it and lose its memory format"
    yield from _kernel_violations(x, num_groups, channels)


def _kernel_violations(x: Tensor, num_groups: int, channels: int) -> Iterator[str]:
    group = channels // num_groups * math.prod(x.shape[2:])
    if group > GROUP_MAX:
        yield f"a group has {group} elements: from {GROUP_MAX} on aiter's 32-bit loop index wraps"
    if x.numel() >= 2**32:
        yield f"x has {x.numel()} elements: aiter's 32-bit index ends at 2^32"
    if x.shape[0] * num_groups > GRID_Y_MAX:
        yield (
            f"{x.shape[0]} samples of {num_groups} groups: aiter's grid ends at {GRID_Y_MAX} of "
            "them"
        )
    spatial = math.prod(x.shape[2:])
    if spatial % 4 and group % 4 == 0 and math.ceil(group / BLOCK) >= BLOCKS_OF_VECTOR_PATH:
        yield (
            f"{spatial} positions per channel are no multiple of 4, in groups of {group} elements: "
            "aiter gives some elements the weight of a neighbouring channel"
        )


def _notes(x: Tensor) -> Iterator[str]:
    yield (
        "aiter takes the variance as E[x²] - E[x]², which cancels where the mean outweighs the "
        "spread"
    )
    yield from contract.denormal_note(x.dtype)


def _run(call: GroupNorm) -> Tensor:
    return group_norm(call.x, call.groups, call.weight, call.bias, call.eps)


def _refuses(call: GroupNorm, target: Target) -> str | None:
    if any(extra is not None for extra in (call.x_bias, call.multiplier, call.addend)) or call.silu:
        return "aiter's GroupNorm has nothing after the norm: SiLU, multiplier or addend"
    if has_front(call.front, call.repeat_first):
        return "aiter's GroupNorm writes a tensor of its own, not behind other frames"
    if call.out_dtype is not call.x.dtype:
        return f"the result is {call.out_dtype} and x is {call.x.dtype}; aiter returns x's dtype"
    return refusal(call.x, call.groups, call.weight, call.bias)


def _note(call: GroupNorm, target: Target) -> str | None:
    return numerics_note(call.x)


AITER = GROUP_NORM.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=_refuses, note=_note, run=_run)
)
