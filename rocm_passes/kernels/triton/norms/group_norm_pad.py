"""GroupNorm written straight into a padded tensor."""

from __future__ import annotations

from torch import Tensor

from rocm_passes.kernels.triton.lowering import register
from rocm_passes.kernels.triton.norms import group_norm
from rocm_passes.ops.group_norm_pad import GROUP_NORM_PAD, GroupNormPad
from rocm_passes.target import Target


def run(call: GroupNormPad) -> Tensor:
    from rocm_passes.kernels.triton.norms.group_norm_pad_kernel import group_norm_pad

    return group_norm_pad(call)


def note(call: GroupNormPad, target: Target) -> str | None:
    return group_norm.rounds_once(call.rounds_between)


TRITON = register(GROUP_NORM_PAD, "norms.group_norm_pad_kernel", run, note=note)
