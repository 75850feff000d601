"""GroupNorm, SiLU or not, and the padding in front of the next convolution.

y = F.pad(silu?(group_norm(x) * weight + bias), padding, mode)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.ops import group_norm, pad
from rocm_passes.ops.operator import Call, Operator


@dataclass(frozen=True)
class GroupNormPad(Call):
    """Returns out_dtype, dense, channels-last or contiguous.

    x: [N, C, H, W] or [N, C, T, H, W]. padding, mode, channels_last: as of `Pad`.
    x_bias, groups, weight, bias, eps, silu, rounds_between: as of `GroupNorm`.
    """

    x: Tensor
    x_bias: Tensor | None
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    silu: bool
    rounds_between: bool
    out_dtype: torch.dtype
    padding: Sequence[int]
    mode: str
    channels_last: bool

    @property
    def shape(self) -> tuple[Any, ...]:
        return pad.padded_shape(self.x, self.padding, self._once, 0)

    @property
    def _once(self) -> list[int]:
        return [1] * (self.x.dim() - 2)

    def norm(self) -> group_norm.GroupNorm:
        """The norm without the padding."""
        return group_norm.GroupNorm(
            self.x,
            self.x_bias,
            self.groups,
            self.weight,
            self.bias,
            self.eps,
            self.silu,
            multiplier=None,
            addend=None,
            rounds_between=self.rounds_between,
            out_dtype=self.out_dtype,
        )

    def pad(self, y: Tensor) -> pad.Pad:
        """The padding of the norm's result."""
        return pad.Pad(y, self.padding, self.mode, self._once, 0, self.channels_last)


def reference(call: GroupNormPad) -> Tensor:
    """Plain torch: GroupNorm's reference, then the padding's."""
    return pad.reference(call.pad(group_norm.reference(call.norm())))


def fake(call: GroupNormPad) -> Tensor:
    return pad.empty(call.x, call.shape, call.channels_last, call.out_dtype)


GROUP_NORM_PAD = Operator("group_norm_pad", GroupNormPad, reference, fake)
