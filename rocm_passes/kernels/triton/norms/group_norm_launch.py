"""GroupNorm of image and video tensors, with SiLU, and with the multiplier and addend of
SpatialNorm3D.

    y = silu?(group_norm(x) * weight + bias)
    y = silu?((group_norm(x) * weight + bias) * multiplier + addend)

A group is large (4 million elements in a VAE's last block), so its statistics are spread over many
programs. Contiguous and channels-last tensors are read in their own order and the result has x's
strides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    per_channel,
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
from rocm_passes.ops.group_norm import GroupNorm

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


def group_norm(call: GroupNorm, out: Tensor | None = None, tile: GroupTile | None = None) -> Tensor:
    """The call's norm in fp32, rounded once; the frames in front of it are left to the caller.

    multiplier and addend are copied where they do not lie in memory as x does. pixel_index is not
    checked. out: written instead of a new tensor; of x's shape, its pixels at equal distances.
    Returns `out`, or a tensor of the call's dtype in x's strides.
    Raises TypeError on dtypes, ValueError on shapes and on the strides of `out`.
    """
    call = checked(call)
    x = call.x if out is None else takes_pixels_of(call.x, out)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=call.out_dtype) if out is None else out
    view = dense_view(x)
    if not is_native(view):
        # Some other order of dims: normalise a contiguous copy, and lay the result out as x is.
        if out is None:
            out = torch.empty_like(view.tensor, dtype=call.out_dtype)
        return out.copy_(group_norm(replace(call, x=x.contiguous()), tile=tile))
    if out is None:
        out = torch.empty_like(view.tensor, dtype=call.out_dtype)
        places = _strides(view)
    else:
        places = pixel_strides(out)
    check_dtype("out", out)
    _launch(_given(call, view), view, out, places, tile)
    return out


def checked(call: GroupNorm) -> GroupNorm:
    """The call, with its parameters as the kernels read them: [C], contiguous."""
    check_dtype("x", call.x)
    if call.x.dim() < 2:
        raise ValueError(f"x is {call.x.dim()}-d; [N, C, *spatial] is needed")
    channels = call.x.shape[1]
    if call.groups < 1 or channels % call.groups:
        raise ValueError(f"{channels} channels do not divide into {call.groups} groups")
    return replace(
        call,
        weight=per_channel("weight", call.weight, channels),
        bias=per_channel("bias", call.bias, channels),
        x_bias=per_channel("x_bias", call.x_bias, channels),
    )


def _given(call: GroupNorm, view: DenseView) -> GroupNorm:
    """The call, with multiplier, addend and pixel_index in memory orders that the kernel reads."""
    if call.pixel_index is None:
        multiplier = _like("multiplier", call.multiplier, view)
        return replace(call, multiplier=multiplier, addend=_like("addend", call.addend, view))
    multiplier, addend = given_by_index(call.multiplier, call.addend, view.tensor)
    return replace(
        call,
        multiplier=multiplier,
        addend=addend,
        pixel_index=in_memory_order(call.pixel_index, view),
    )


def _launch(
    call: GroupNorm,
    view: DenseView,
    out: Tensor,
    places: tuple[int, int, int],
    tile: GroupTile | None,
) -> None:
    """places: the strides of `out` along samples, pixels and channels."""
    x, channels = view.tensor, view.channels
    samples = x.shape[0]
    pixels = x.numel() // (samples * channels)
    tile = tile or choose_tile(samples, channels, pixels, view.inner == 1)
    channel_blocks = triton.cdiv(channels, tile.channels)
    pixel_blocks = triton.cdiv(pixels, tile.pixels)
    given = call.addend if call.multiplier is None else call.multiplier
    given_strides = (0, 0, 0)
    if given is not None and call.pixel_index is not None:
        given_strides = pixel_strides(given)
    largest = max(*(t.numel() // samples for t in (x, given) if t is not None), sample_extent(out))
    launch(
        group_norm_apply_kernel, (samples * pixel_blocks * channel_blocks,),
        x, call.x_bias, *group_statistics(call, view, tile).unbind(), call.weight, call.bias,
        call.multiplier, call.addend, call.pixel_index, out,
        pixels, pixel_blocks, channel_blocks, *_strides(view), *given_strides, *places,
        C=channels, GROUPS=call.groups, CHANNELS=tile.channels, PIXELS=tile.pixels,
        HAS_X_BIAS=call.x_bias is not None, HAS_WEIGHT=call.weight is not None,
        HAS_BIAS=call.bias is not None, HAS_MULTIPLIER=call.multiplier is not None,
        HAS_ADDEND=call.addend is not None, HAS_PIXEL_INDEX=call.pixel_index is not None,
        SILU=call.silu, WIDE=_is_wide(largest, tile), num_warps=tile.num_warps,
    )  # fmt: skip


def group_statistics(call: GroupNorm, view: DenseView, tile: GroupTile) -> Tensor:
    """Mean, in two parts that are added, and 1/sqrt(variance + eps) of each group: float32 [3, N,
    groups].

    call: `checked`. view: of its x, native (`is_native`), not empty.
    """
    x, channels = view.tensor, view.channels
    samples = x.shape[0]
    pixels = x.numel() // (samples * channels)
    per_split = triton.cdiv(triton.cdiv(pixels, tile.splits), tile.pixels) * tile.pixels
    splits = triton.cdiv(pixels, per_split)
    partials = torch.empty((3, samples, splits, channels), dtype=torch.float32, device=x.device)
    statistics = torch.empty((3, samples, call.groups), dtype=torch.float32, device=x.device)
    channel_blocks = triton.cdiv(channels, tile.channels)
    launch(
        group_norm_partials_kernel, (samples * splits * channel_blocks,),
        x, call.x_bias, *partials.unbind(), pixels, per_split, splits, channel_blocks,
        *_strides(view), C=channels, CHANNELS=tile.channels, PIXELS=tile.pixels,
        HAS_X_BIAS=call.x_bias is not None, WIDE=_is_wide(x.numel() // samples, tile),
        num_warps=tile.num_warps,
    )  # fmt: skip
    launch(
        group_norm_combine_kernel, (samples * call.groups,),
        *partials.unbind(), *statistics.unbind(), pixels, per_split, splits,
        C=channels, GROUPS=call.groups, EPS=float(call.eps), BLOCK=COMBINE_BLOCK, num_warps=4,
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
