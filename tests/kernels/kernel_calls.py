"""The Triton kernels by keyword, with defaults for what a test does not name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rocm_passes.kernels.triton.norms import (
    channel_norm_launch,
    group_norm_launch,
    group_norm_pad_kernel,
    norm,
)
from rocm_passes.kernels.triton.rotary import qk_norm_rotary_launch, rotary_launch
from rocm_passes.kernels.triton.rotary.rotary_launch import HeadNorms, Rotation
from rocm_passes.ops.channel_norm import ChannelNorm
from rocm_passes.ops.group_norm import GroupNorm
from rocm_passes.ops.group_norm_pad import GroupNormPad

_GROUP_NORM = {
    "x_bias": None,
    "silu": False,
    "multiplier": None,
    "addend": None,
    "rounds_between": False,
}


def fused_norm(
    x: Tensor,
    *,
    modulations: Sequence[tuple[Tensor | None, Tensor | None]] = (),
    tile: norm.NormTile | None = None,
    **given: Any,
) -> tuple[list[Tensor], Tensor | None]:
    pairs = (*modulations, (None, None), (None, None))[:2]
    tables = {f"{name}{i}": t for i, pair in enumerate(pairs)
              for name, t in zip(("scale", "shift"), pair, strict=True)}  # fmt: skip
    operands = {k: given.pop(k) for k in norm.Operands._fields if k in given}
    how = norm.Norm(modulations=len(modulations), **given)
    return norm.fused_norm(norm.Operands(x, **operands, **tables), how, tile)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out: Tensor | None = None,
    tile: group_norm_launch.GroupTile | None = None,
    **given: Any,
) -> Tensor:
    whole = {**_GROUP_NORM, "out_dtype": x.dtype, **given}
    call = GroupNorm(x=x, groups=groups, weight=weight, bias=bias, eps=eps, **whole)
    return group_norm_launch.group_norm(call, out, tile)


def group_norm_pad(x: Tensor, *positional: Any, tile: Any = None, **given: Any) -> Tensor:
    """positional: groups, weight, bias, eps, padding, mode."""
    names = ("groups", "weight", "bias", "eps", "padding", "mode")
    whole = {
        "x_bias": None,
        "silu": False,
        "rounds_between": False,
        "channels_last": True,
        "out_dtype": x.dtype,
        **dict(zip(names, positional, strict=True)),
        **given,
    }
    return group_norm_pad_kernel.group_norm_pad(GroupNormPad(x=x, **whole), tile)


def channel_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    round_before_weight: bool = False,
    out: Tensor | None = None,
    tile: channel_norm_launch.ChannelTile | None = None,
    **given: Any,
) -> Tensor:
    whole: dict[str, Any] = {
        "x_bias": None,
        "form": "l2",
        "eps": 1e-12,
        "scale": 1.0,
        "silu": False,
        "rounds_between": False,
        "out_dtype": x.dtype,
        **given,
    }
    round_to = x.dtype if round_before_weight else None
    call = ChannelNorm(x=x, gamma=gamma, bias=bias, round_to=round_to, **whole)
    return channel_norm_launch.channel_norm(call, out, tile)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, **given: Any) -> Tensor:
    rotation, others = _rotation(given)
    return rotary_launch.rotary(x, cos, sin, rotation, **others)


def rotary_pair(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **given: Any
) -> tuple[Tensor, Tensor]:
    rotation, others = _rotation(given)
    return rotary_launch.rotary_pair(q, k, cos, sin, rotation, **others)


def qk_norm_rotary(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """eps_k: eps_q by default."""
    rotation, others = _rotation(given)
    results = {name: others.pop(name) for name in ("out_dtype", "outs") if name in others}
    norms = HeadNorms(**{"eps_k": others["eps_q"], **others})
    return qk_norm_rotary_launch.qk_norm_rotary(q, k, cos, sin, rotation, norms, **results)


def _rotation(given: dict[str, Any]) -> tuple[Rotation, dict[str, Any]]:
    """The rotation that the keywords give, and the keywords left, with both results as `outs`."""
    names = ("interleaved", "rotary_dim", "conjugate", "seq_start")
    rotation = Rotation(**{name: given.pop(name) for name in names if name in given})
    if "out_q" in given or "out_k" in given:
        given["outs"] = given.pop("out_q", None), given.pop("out_k", None)
    return rotation, given
