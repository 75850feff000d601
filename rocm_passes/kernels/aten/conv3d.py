"""The lowerings of conv3d: which of them take a given call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rocm_passes.errors import plural
from rocm_passes.fx.nodes import dtype_name
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
from rocm_passes.ops.operator import Lowering
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
    if axis.out > TILE_FRAMES:
        return None
    return f"{plural(axis.out, 'output frame')} {'is' if axis.out == 1 else 'are'} one tile"


def compute_note(call: Conv3d, target: Target) -> str | None:
    compute = call.compute
    if not compute:
        return None
    scaled = ", scaled into its range" if compute is torch.float16 else ""
    return (
        f"convolved in {dtype_name(compute)}{scaled} (conv_dtype): an error of about "
        f"{COMPUTE_ERRORS[compute]:.2%} of the result's rms"
    )


def _taps_inexact(call: Conv3d, target: Target) -> str | None:
    """Where taps cancel (a scene that hardly moves), the error was up to 67 times conv3d's
    (bf16).
    """
    dtype = call.compute or call.x[0].dtype
    if dtype not in LOW_PRECISION or call.live_taps() == 1:
        return None
    return f"each tap's sum is rounded to {dtype_name(dtype)} before the taps are added"


def _register(name: str, write: Callable[[Any, Conv3d], Any], **functions: Any) -> None:
    def written(b: Any, call: Conv3d) -> Any:
        return write_rounded_up(b, write, call) if call.extra_frames else write(b, call)

    CONV3D.register(Lowering(name, write=written, **{"note": compute_note, **functions}))


_register("matmul", write_matmul, refuses=_refuses_matmul)
_register("conv2d", write_conv2d, refuses=_refuses_conv2d)
_register("taps", write_taps, refuses=_refuses_taps, inexact=_taps_inexact)
_register(
    "taps_tiled",
    write_taps_tiled,
    refuses=_refuses_taps_tiled,
    inexact=_taps_inexact,
)
_register("direct", write_direct)
_register(
    "unfold",
    write_unfold,
    refuses=_refuses_unfold,
)
_register(
    "tiled",
    write_tiled,
    refuses=_refuses_tiled,
)
