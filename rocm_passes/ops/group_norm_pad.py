"""GroupNorm, SiLU or not, and the padding in front of the next convolution.

y = F.pad(silu?(group_norm(x) * weight + bias), padding, mode)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops import group_norm, pad
from rocm_passes.ops.operator import Lowering, Operator, Verdict, measured
from rocm_passes.target import Target, needs_import, needs_triton

SCHEMA = (
    "(Tensor x, Tensor? x_bias, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, bool rounds_between, "
    "ScalarType out_dtype, int[] padding, str mode, bool channels_last) -> Tensor"
)


def reference(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    rounds_between: bool,
    out_dtype: torch.dtype,
    padding: Sequence[int],
    mode: str,
    channels_last: bool,
) -> Tensor:
    """Plain torch: `group_norm`'s reference, then `pad`'s.

    x: [N, C, H, W] or [N, C, T, H, W]. padding, mode: as `pad`'s. Returns out_dtype, dense, channels-last or
    contiguous.
    """
    y = group_norm.reference(
        x, x_bias, groups, weight, bias, eps, silu, None, None, rounds_between, out_dtype
    )
    return pad.reference(y, padding, mode, _once(x), 0, channels_last)


def fake(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    rounds_between: bool,
    out_dtype: torch.dtype,
    padding: Sequence[int],
    mode: str,
    channels_last: bool,
) -> Tensor:
    return pad.empty(x, pad.padded_shape(x, padding, _once(x), 0), channels_last, out_dtype)


def _once(x: Tensor) -> list[int]:
    return [1] * (x.dim() - 2)


def _triton(
    x: Tensor,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    rounds_between: bool,
    out_dtype: torch.dtype,
    padding: Sequence[int],
    mode: str,
    channels_last: bool,
) -> Tensor:
    from rocm_passes.kernels.triton.norms import group_norm_pad

    return group_norm_pad.group_norm_pad(
        x,
        groups,
        weight,
        bias,
        eps,
        padding,
        mode,
        silu=silu,
        out_dtype=out_dtype,
        x_bias=x_bias,
        channels_last=channels_last,
    )


def _triton_pays(target: Target, x: Tensor, padding: Sequence[int], channels_last: bool, **_: Any) -> Verdict:
    """Where both pay by themselves: then it spares the padding's own pass over memory."""
    for verdict in (
        group_norm.triton_pays(target, x=x),
        pad.pays(target, pad.padded_shape(x, padding, _once(x), 0), channels_last),
    ):
        if not verdict.pays:
            return verdict
    # python -m rocm_passes.bench.pads: beside the convolutions 0.67 ms for GroupNorm and a
    # copy's 0.77, and Inductor's 1.20.
    return Verdict(
        True, f"GroupNorm writes the padded tensor itself, one pass over memory less ({measured(target)})"
    )


OPERATOR = Operator(
    "group_norm_pad",
    SCHEMA,
    reference,
    fake,
    lowerings=(
        Lowering(
            "triton",
            requires=(needs_triton, needs_import("rocm_passes.kernels.triton.norms.group_norm_pad")),
            note=group_norm.triton_note,
            pays=_triton_pays,
            run=_triton,
            launches=True,
        ),
    ),
)
