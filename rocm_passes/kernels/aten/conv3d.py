"""The lowerings of conv3d: which of them take a given call, and the rules where nothing is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rocm_passes.kernels.aten.conv3d_steps import LOW_PRECISION
from rocm_passes.kernels.aten.conv3d_write import (
    TILE_FRAMES,
    tiles_of_taps,
    write_conv2d,
    write_direct,
    write_matmul,
    write_rounded_up,
    write_taps,
    write_taps_tiled,
    write_tiled,
    write_unfold,
)
from rocm_passes.ops.conv3d import COMPUTE_ERRORS, CONV3D, Conv3d
from rocm_passes.ops.operator import Lowering, Verdict
from rocm_passes.target import Target

#: These compute with every temporal tap, also with those that see zeros alone.
WHOLE_KERNEL = frozenset({"direct", "tiled"})


def _refuses_conv2d(call: Conv3d, target: Target) -> str | None:
    live = call.live_taps()
    if call.weight.shape[2] == 1 and tuple(call.zeros) == (0, 0):
        return None if live is not None else "the number of frames is symbolic"
    if live is None:
        return "the number of frames is symbolic"
    if live != 1:
        return f"{live} temporal taps see frames that are not zero"
    axis = call.axis()
    return None if axis.taps()[0].count == axis.out else "some output frames see zeros alone"


def _refuses_taps(call: Conv3d, target: Target) -> str | None:
    if call.weight.shape[2] == 1:
        return "kT=1: there is one tap"
    live = call.live_taps()
    if live is None:
        return "the number of frames is symbolic"
    return "no temporal tap sees a frame that is not zero" if live == 0 else None


def _refuses_taps_tiled(call: Conv3d, target: Target) -> str | None:
    reason = _refuses_taps(call, target)
    if reason is not None:
        return reason
    axis = call.axis()
    if axis.out == 1:
        return "1 output frame is one tile"
    if not all(taps for taps, _ in tiles_of_taps(axis)):
        return "no temporal tap of some tile sees a frame that is not zero"
    return None


def _refuses_unfold(call: Conv3d, target: Target) -> str | None:
    return "kT=1: there is one tap, so nothing to unfold" if call.weight.shape[2] == 1 else None


def _refuses_matmul(call: Conv3d, target: Target) -> str | None:
    return call.not_a_product()


def _refuses_tiled(call: Conv3d, target: Target) -> str | None:
    axis = call.axis()
    if not isinstance(axis.frames, int):
        return "the number of frames is symbolic"
    return f"{axis.out} output frames are one tile" if axis.out <= TILE_FRAMES else None


def compute_note(call: Conv3d, target: Target) -> str | None:
    compute = call.compute
    if not compute:
        return None
    scaled = ", scaled into its range" if compute is torch.float16 else ""
    return (
        f"convolved in {_name(compute)}{scaled} (conv_dtype): an error of about "
        f"{COMPUTE_ERRORS[compute]:.2%} of the result's rms"
    )


def _taps_inexact(call: Conv3d, target: Target) -> str | None:
    """Where taps cancel (a scene that hardly moves), the error was up to 67 times conv3d's (bf16)."""
    dtype = call.compute or call.x[0].dtype
    if dtype not in LOW_PRECISION or call.live_taps() == 1:
        return None
    return f"each tap's sum is rounded to {_name(dtype)} before the taps are added"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _conv2d_pays(call: Conv3d, target: Target) -> Verdict:
    kernel = call.weight.shape[2]
    if kernel > 1:
        return Verdict(
            True, f"one of {kernel} temporal taps sees frames that are not zero; the others are dropped"
        )
    if target.is_gpu:
        return Verdict(
            True, "kT=1: it is a conv2d on frames, for which libraries have more and faster kernels"
        )
    return Verdict(False, "kT=1, and on a CPU conv3d is as fast")


def _matmul_pays(call: Conv3d, target: Target) -> Verdict:
    if target.is_gpu:
        return Verdict(True, "kernel = stride: a matrix product, without the library's convolution")
    return Verdict(False, "on a CPU the library's convolution is as fast")


def _taps_pay(call: Conv3d, target: Target) -> Verdict:
    (out, channels, kernel, *spatial), live = call.weight.shape, call.live_taps()
    if live is not None and 1 < live < kernel:
        return Verdict(
            True, f"{live} of {kernel} temporal taps see frames that are not zero; the others are dropped"
        )
    if target.vendor == "amd":
        # Not run on AMD hardware here: the published winner over MIOpen's conv3d and over the unfolded copy.
        return Verdict(
            True,
            "rule from published results over MIOpen's conv3d (SeedVR2#634); not measured on this machine",
        )
    if target.vendor == "nvidia" and call.channels_last and spatial != [1, 1]:
        return _taps_on_nvidia(out, channels, call.x[0].dtype)
    return Verdict(False, "the library's conv3d was the faster one on this kind of device")


def _taps_on_nvidia(out: int, channels: int, dtype: torch.dtype) -> Verdict:
    """As measured on an H200 with channels-last tensors (docs/tuning.md)."""
    if min(out, channels) >= 64 and dtype is torch.float32:
        return Verdict(True, "rule from an H200: in float32 taps take 0.6 of the time of cuDNN's conv3d")
    if min(out, channels) >= 64 and channels % 64 and dtype in LOW_PRECISION:
        return Verdict(True, "rule from an H200: cuDNN's conv3d is slow at channels not a multiple of 64")
    return Verdict(False, "cuDNN's conv3d was the faster one on an H200")


def _direct_pays(call: Conv3d, target: Target) -> Verdict:
    if _unfold_pays(call, target).pays and _refuses_unfold(call, target) is None:
        return Verdict(False, "rule from published results: one conv2d over the unfolded frames is faster")
    if call.channels_last:
        return Verdict(True, "channels-last through the whole graph, without conversions between neighbours")
    if call.absorbed:
        return Verdict(True, "the padding in front of it becomes the convolution's own, without a copy")
    if call.compute:
        return Verdict(True, "conv_dtype was asked for")
    return Verdict(False, "it is what the graph has")


def _unfold_pays(call: Conv3d, target: Target) -> Verdict:
    if target.vendor != "amd":
        return Verdict(False, "the library's conv3d does the same work without the unfolded copy")
    copied, bound = call.unfolded_mib(), call.usual_memory_mib()
    if copied is None:
        return Verdict(False, "the number of frames is symbolic, and so is the size of the unfolded copy")
    if copied > bound:
        return Verdict(False, f"the unfolded copy needs {copied:.0f} MiB; the bound is {bound:.0f} MiB")
    # Not run on AMD hardware here.
    return Verdict(
        True, "rule from published results over MIOpen's conv3d (sglang#22971); not measured on this machine"
    )


def _never(reason: str) -> Callable[[Conv3d, Target], Verdict]:
    return lambda call, target: Verdict(False, reason)


def _register(name: str, write: Callable[[Any, Conv3d], Any], **functions: Any) -> None:
    def written(b: Any, call: Conv3d) -> Any:
        return write_rounded_up(b, write, call) if call.extra_frames else write(b, call)

    CONV3D.register(Lowering(name, write=written, **{"note": compute_note, **functions}))


_register("matmul", write_matmul, refuses=_refuses_matmul, pays=_matmul_pays)
_register("conv2d", write_conv2d, refuses=_refuses_conv2d, pays=_conv2d_pays)
_register("taps", write_taps, refuses=_refuses_taps, inexact=_taps_inexact, pays=_taps_pay)
_register(
    "taps_tiled",
    write_taps_tiled,
    refuses=_refuses_taps_tiled,
    inexact=_taps_inexact,
    pays=_never("one call per tap is faster; tiles bound the peak memory"),
)
_register("direct", write_direct, pays=_direct_pays)
_register(
    "unfold",
    write_unfold,
    refuses=_refuses_unfold,
    pays=_unfold_pays,
)
_register(
    "tiled",
    write_tiled,
    refuses=_refuses_tiled,
    pays=_never("one call is faster; tiles bound the peak memory"),
)
