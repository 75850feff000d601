"""GroupNorm of image and video tensors, with SiLU, and with the multiplier and addend of
SpatialNorm3D.

    y = silu?(group_norm(x) * weight + bias)
    y = silu?((group_norm(x) * weight + bias) * multiplier + addend)

A group is large (4 million elements in a VAE's last block), so its statistics are spread over many
programs. Contiguous and channels-last tensors are read in their own order and the result has x's
strides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from rocm_passes.kernels.triton.common import (
    INT32_MAX,
    TRITON_TYPE,
    broadcasts_to,
    check_dtype,
    power_of_two_divisor,
)
from rocm_passes.kernels.triton.convolution.pixel_index import given_by_index, in_memory_order
from rocm_passes.kernels.triton.dense import (
    DenseView,
    dense_view,
    pixel_strides,
    sample_extent,
    takes_pixels_of,
)
from rocm_passes.kernels.triton.launch import launch
from rocm_passes.kernels.triton.norms.group_norm_kernel import (
    group_norm_apply_kernel,
    group_norm_combine_kernel,
    group_norm_partials_kernel,
)

# Programs that the statistics are spread over: a few waves on any card. More partials than this
# take longer to combine than they save (GroupNorm + SiLU of 128 x 1024 x 1024 on an H200: 1.67 of
# the floor with 512, 1.86 with 2048).
_STATISTICS_PROGRAMS = 1024
_MAX_SPLITS = 512
COMBINE_BLOCK = 1024


@dataclass(frozen=True)
class GroupTile:
    """[channels, pixels] tiles, and how many stretches of pixels the statistics are taken in."""

    channels: int
    pixels: int
    splits: int
    num_warps: int


def choose_tile(samples: int, channels: int, pixels: int, channels_last: bool) -> GroupTile:
    """2048 or 4096 elements a tile, contiguous in memory as far as they go, all lanes busy if
    possible.
    """
    if channels_last:
        divisor = power_of_two_divisor(channels)
        block = min(divisor if divisor >= 16 else triton.next_power_of_2(channels), 128)
        width = 4096 // block
    else:
        width = min(triton.next_power_of_2(pixels), 2048)
        block = min(2048 // width, triton.next_power_of_2(channels))
    programs = samples * triton.cdiv(channels, block)
    splits = max(
        1, min(_STATISTICS_PROGRAMS // programs, _MAX_SPLITS, triton.cdiv(pixels, 4 * width))
    )
    return GroupTile(block, width, splits, num_warps=4)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    silu: bool = False,
    multiplier: Tensor | None = None,
    addend: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_bias: Tensor | None = None,
    pixel_index: Tensor | None = None,
    out: Tensor | None = None,
    tile: GroupTile | None = None,
) -> Tensor:
    """GroupNorm of `x` ([N, C, *spatial], float32/float16/bfloat16) in fp32, rounded once.

    weight, bias: [C], any float dtype. x_bias: [C], added to x before the norm, unrounded: the bias
    of the convolution that made x. multiplier, addend: any float dtype, broadcastable to x (copied
    where they do not lie in memory as x does). pixel_index: [*spatial], int32 or int64: multiplier
    and addend are of one shape [N, C, *other], and for each of x's pixels it has the number of
    theirs, from 0 to their count (unchecked).
    out: written instead of a new tensor; of x's shape, its pixels at equal distances.
    Returns `out`, or `out_dtype` (x's by default) in x's strides.
    Raises TypeError on dtypes, ValueError on shapes and on the strides of `out`.
    """
    check_dtype("x", x)
    if x.dim() < 2:
        raise ValueError(f"x is {x.dim()}-d; [N, C, *spatial] is needed")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    weight, bias = per_channel("weight", weight, channels), per_channel("bias", bias, channels)
    x_bias = per_channel("x_bias", x_bias, channels)
    if out is not None:
        x = takes_pixels_of(x, out)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=out_dtype or x.dtype) if out is None else out
    view = dense_view(x)
    if not is_native(view):
        # Some other order of dims: normalise a contiguous copy, and lay the result out as x is.
        if out is None:
            out = torch.empty_like(view.tensor, dtype=out_dtype or x.dtype)
        return out.copy_(
            group_norm(
                x.contiguous(), groups, weight, bias, eps,
                silu=silu, multiplier=multiplier, addend=addend, out_dtype=out_dtype, x_bias=x_bias,
                pixel_index=pixel_index, tile=tile,
            )
        )  # fmt: skip
    if pixel_index is None:
        multiplier, addend = (_like("multiplier", multiplier, view), _like("addend", addend, view))
    else:
        multiplier, addend = given_by_index(multiplier, addend, x)
        pixel_index = in_memory_order(pixel_index, view)
    if out is None:
        out = torch.empty_like(view.tensor, dtype=out_dtype or x.dtype)
        out_strides = _strides(view)
    else:
        out_strides = pixel_strides(out)
    check_dtype("out", out)
    _launch(
        view,
        x_bias,
        groups,
        weight,
        bias,
        eps,
        silu,
        multiplier,
        addend,
        pixel_index,
        out,
        out_strides,
        tile,
    )
    return out


def _launch(
    view: DenseView,
    x_bias: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    multiplier: Tensor | None,
    addend: Tensor | None,
    pixel_index: Tensor | None,
    out: Tensor,
    out_strides: tuple[int, int, int],
    tile: GroupTile | None,
) -> None:
    x, channels = view.tensor, view.channels
    samples = x.shape[0]
    pixels = x.numel() // (samples * channels)
    channels_last = view.inner == 1
    tile = tile or choose_tile(samples, channels, pixels, channels_last)
    channel_blocks, pixel_blocks = (
        triton.cdiv(channels, tile.channels),
        triton.cdiv(pixels, tile.pixels),
    )

    given = addend if multiplier is None else multiplier
    given_strides = (0, 0, 0) if given is None or pixel_index is None else pixel_strides(given)
    largest = max(*(t.numel() // samples for t in (x, given) if t is not None), sample_extent(out))

    statistics = group_statistics(view, x_bias, groups, eps, tile)
    launch(
        group_norm_apply_kernel, (samples * pixel_blocks * channel_blocks,),
        x, x if x_bias is None else x_bias, *statistics.unbind(),
        *(x if t is None else t for t in (weight, bias, multiplier, addend, pixel_index)),
        out, pixels, pixel_blocks, channel_blocks, *_strides(view), *given_strides,
        *out_strides,
        C=channels, GROUPS=groups, CHANNELS=tile.channels, PIXELS=tile.pixels,
        HAS_X_BIAS=x_bias is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        HAS_MULTIPLIER=multiplier is not None, HAS_ADDEND=addend is not None,
        HAS_PIXEL_INDEX=pixel_index is not None, SILU=silu, WIDE=_is_wide(largest, tile),
        num_warps=tile.num_warps,
    )  # fmt: skip


def group_statistics(
    view: DenseView, x_bias: Tensor | None, groups: int, eps: float, tile: GroupTile
) -> Tensor:
    """Mean, in two parts that are added, and 1/sqrt(variance + eps) of each group: float32 [3, N,
    groups].

    view: native (`is_native`), not empty. x_bias: [C], contiguous, or None.
    """
    x, channels = view.tensor, view.channels
    samples = x.shape[0]
    pixels = x.numel() // (samples * channels)
    per_split = triton.cdiv(triton.cdiv(pixels, tile.splits), tile.pixels) * tile.pixels
    splits = triton.cdiv(pixels, per_split)
    partials = torch.empty((3, samples, splits, channels), dtype=torch.float32, device=x.device)
    statistics = torch.empty((3, samples, groups), dtype=torch.float32, device=x.device)
    channel_blocks = triton.cdiv(channels, tile.channels)
    launch(
        group_norm_partials_kernel, (samples * splits * channel_blocks,),
        x, x if x_bias is None else x_bias, *partials.unbind(), pixels, per_split, splits,
        channel_blocks,
        *_strides(view), C=channels, CHANNELS=tile.channels, PIXELS=tile.pixels,
        HAS_X_BIAS=x_bias is not None, WIDE=_is_wide(x.numel() // samples, tile),
        num_warps=tile.num_warps,
    )  # fmt: skip
    launch(
        group_norm_combine_kernel, (samples * groups,),
        *partials.unbind(), *statistics.unbind(), pixels, per_split, splits,
        C=channels, GROUPS=groups, EPS=float(eps), BLOCK=COMBINE_BLOCK, num_warps=4,
    )  # fmt: skip
    return statistics


def is_native(view: DenseView) -> bool:
    """Is each sample one run of memory, contiguous or channels-last?"""
    return view.batch_outermost and (view.inner == 1 or view.outer == view.tensor.shape[0])


def _strides(view: DenseView) -> tuple[int, int, int]:
    """Of a native view: along samples, pixels and channels."""
    size = view.tensor.numel() // view.tensor.shape[0]
    return (size, view.channels, 1) if view.inner == 1 else (size, 1, size // view.channels)


def _is_wide(largest: int, tile: GroupTile) -> bool:
    """Do offsets inside a sample of so many elements pass 31 bits?"""
    return largest + tile.channels * tile.pixels > INT32_MAX


def per_channel(name: str, t: Tensor | None, channels: int) -> Tensor | None:
    """`t` as [C], contiguous, in a dtype that kernels read."""
    if t is None:
        return None
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; a floating dtype is needed")
    if t.numel() != channels:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}; {channels} elements, one a channel, are needed"
        )
    t = t if t.dtype in TRITON_TYPE else t.float()
    return t.reshape(-1).contiguous()


def _like(name: str, t: Tensor | None, view: DenseView) -> Tensor | None:
    """`t` broadcast to x and laid out in memory as x is."""
    if t is None:
        return None
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; a floating dtype is needed")
    x = view.tensor
    if not broadcasts_to(t.shape, x.shape):
        raise ValueError(f"{name} of shape {tuple(t.shape)} does not broadcast to {tuple(x.shape)}")
    t = t if t.dtype in TRITON_TYPE else t.float()
    if t.shape == x.shape and t.stride() == x.stride():
        return t
    return torch.empty_like(x, dtype=t.dtype).copy_(t)
