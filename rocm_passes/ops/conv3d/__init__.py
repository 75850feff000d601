"""The ways to compute a conv3d, which of them take a given call, and the rules where nothing is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from rocm_passes.ops.conv3d.frames import TimeAxis, axis_of, out_size
from rocm_passes.ops.conv3d.write import (
    LOW_PRECISION,
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
from rocm_passes.ops.operator import Lowering, Verdict
from rocm_passes.target import Target

__all__ = [
    "LOWERINGS",
    "WHOLE_KERNEL",
    "extra_frames",
    "flops",
    "is_patch_embedding",
    "key",
    "live_taps",
    "out_size",
    "spares_taps",
    "tensors_mib",
    "usual_memory_mib",
]


def _axis(**call: Any) -> TimeAxis:
    """As the lowerings see it: frames in excess are there."""
    axis = axis_of(call["x"], call["weight"], call["zeros"], call["stride"], call["dilation"])
    extra = call.get("extra_frames", 0)
    return replace(axis, frames=axis.frames + extra * axis.stride) if extra else axis


def live_taps(**call: Any) -> int | None:
    """How many temporal taps see a real frame, or None where the number of frames is symbolic."""
    axis = _axis(**call)
    return len(axis.taps()) if isinstance(axis.frames, int) else None


def spares_taps(**call: Any) -> bool:
    """One temporal tap of several sees a real frame: the first frame of a video, or an image."""
    return bool(call["weight"].shape[2] > 1 and live_taps(**call) == 1)


def is_patch_embedding(**call: Any) -> bool:
    """A matrix product, of patches of more than one element."""
    return _refuses_matmul(**call) is None and math.prod(call["weight"].shape[2:]) > 1


def extra_frames(bucket: int, **call: Any) -> int:
    """How many output frames to compute in excess, so that their number is a multiple of `bucket`.

    None of a single frame, whose cost would be a multiple, and none where a temporal tap is spared by zero frames.
    """
    axis = _axis(**call)
    spared = axis.kernel == 1 and any(call["zeros"])
    if (
        not bucket
        or not isinstance(axis.out, int)
        or axis.out < 2
        or spared
        or live_taps(**call) != axis.kernel
    ):
        return 0
    return -axis.out % bucket


#: The largest call of a graph may need as much memory beside its tensors as this, or this share of them.
USUAL_MIB, USUAL_SHARE = 512, 0.75


def tensors_mib(**call: Any) -> float:
    """Input and result together, of a call with numbers for sizes; 0 where one is symbolic."""
    of_input = sum(math.prod(piece.shape) for piece in call["x"])
    elements = of_input + _result_elements(**call)
    return elements * call["x"][0].itemsize / 2**20 if isinstance(elements, int) else 0.0


def usual_memory_mib(**call: Any) -> float:
    """The memory bound where the user has given none. largest_mib: input and result of the graph's largest call.

    A sum over three taps holds three results at once, as much as input and result of Wan's last block together; with
    the bound its decode took no longer and 0.5 GiB less (H200). A smaller call may need so much more: with its tensors
    it then takes as much as the largest one may.
    """
    own = tensors_mib(**call)
    bound: float = max(USUAL_MIB, (1 + USUAL_SHARE) * max(own, call.get("largest_mib", 0.0)) - own)
    return bound


#: Root mean square error of a convolution of normally distributed values in that dtype, over the rms of its result:
#: the values, the weight and the result (of each tap) are rounded, sums are kept in float32.
COMPUTE_ERRORS = {torch.bfloat16: 2.8e-3, torch.float16: 3.4e-4}


def flops(**call: Any) -> float:
    """Floating-point operations of the call with numbers for sizes, taps on zero frames included."""
    weight = call["weight"]
    return float(2 * _result_elements(**call) * math.prod(weight.shape[1:]))


def _result_elements(**call: Any) -> Any:
    x, weight = call["x"][0], call["weight"]
    axis = _axis(**call)
    sizes = [
        out_size(s, k, stride, p, d)
        for s, k, stride, p, d in zip(
            x.shape[3:],
            weight.shape[3:],
            call["stride"][1:],
            call["padding"],
            call["dilation"][1:],
            strict=True,
        )
    ]
    return math.prod((x.shape[0], weight.shape[0], axis.out, *sizes))


def key(**call: Any) -> str:
    """The call in words, as the file of measured choices names it."""

    def by(sizes: Any) -> str:
        return "x".join(str(s) for s in sizes)

    x = call["x"]
    dtype = str(call.get("compute") or x[0].dtype).removeprefix("torch.")
    shapes = [list(p.shape) for p in x]
    # Calls of one bucket have one key.
    shapes[-1][2] += call.get("extra_frames", 0) * call["stride"][0]
    words = [
        f"conv3d {dtype} x {' + '.join(map(by, shapes))} w {by(call['weight'].shape)}",
        f"pad {by(call['padding'])}" if any(call["padding"]) else "",
        f"zero frames {by(call['zeros'])}" if any(call["zeros"]) else "",
        f"stride {by(call['stride'])}" if set(call["stride"]) != {1} else "",
        f"dilation {by(call['dilation'])}" if set(call["dilation"]) != {1} else "",
        f"groups {call['groups']}" if call["groups"] != 1 else "",
        "channels-last" if call["channels_last"] else "",
        "tf32" if dtype == "float32" and torch.backends.cudnn.allow_tf32 else "",
    ]
    return " ".join(w for w in words if w)


def _refuses_conv2d(**call: Any) -> str | None:
    if call["weight"].shape[2] == 1 and tuple(call["zeros"]) == (0, 0):
        return None if live_taps(**call) is not None else "the number of frames is symbolic"
    live = live_taps(**call)
    if live is None:
        return "the number of frames is symbolic"
    if live != 1:
        return f"{live} temporal taps see frames that are not zero"
    axis = _axis(**call)
    return None if axis.taps()[0].count == axis.out else "some output frames see zeros alone"


def _refuses_taps(**call: Any) -> str | None:
    if call["weight"].shape[2] == 1:
        return "kT=1: there is one tap"
    live = live_taps(**call)
    if live is None:
        return "the number of frames is symbolic"
    return "no temporal tap sees a frame that is not zero" if live == 0 else None


def _refuses_taps_tiled(**call: Any) -> str | None:
    reason = _refuses_taps(**call)
    if reason is not None:
        return reason
    axis = _axis(**call)
    if axis.out == 1:
        return "1 output frame is one tile"
    if not all(taps for taps, _ in tiles_of_taps(axis)):
        return "no temporal tap of some tile sees a frame that is not zero"
    return None


def _refuses_unfold(**call: Any) -> str | None:
    if call["weight"].shape[2] == 1:
        return "kT=1: there is one tap, so nothing to unfold"
    return None


def _refuses_matmul(**call: Any) -> str | None:
    kernel = tuple(call["weight"].shape[2:])
    if kernel != tuple(call["stride"]):
        return "the kernel is not as large as the stride: inputs are read more than once"
    if call["groups"] != 1:
        return f"groups={call['groups']}"
    if any(call["padding"]) or any(call["zeros"]):
        return "it has padding"
    if any(d != 1 for d, k in zip(call["dilation"], kernel, strict=True) if k > 1):
        return f"dilation={tuple(call['dilation'])}"
    return None


def _refuses_tiled(**call: Any) -> str | None:
    axis = _axis(**call)
    if not isinstance(axis.frames, int):
        return "the number of frames is symbolic"
    if axis.out <= TILE_FRAMES:
        return f"{axis.out} output frames are one tile"
    return None


def _taps_note(target: Target, **call: Any) -> str | None:
    dtype = call["x"][0].dtype
    if dtype in LOW_PRECISION and live_taps(**call) != 1:
        return f"each tap's sum is rounded to {str(dtype).removeprefix('torch.')} before the taps are added"
    return None


def _compute_note(target: Target, **call: Any) -> str | None:
    compute = call.get("compute")
    if not compute:
        return None
    scaled = ", scaled into its range" if compute is torch.float16 else ""
    return (
        f"convolved in {str(compute).removeprefix('torch.')}{scaled} (conv_dtype): an error of about "
        f"{COMPUTE_ERRORS[compute]:.2%} of the result's rms"
    )


def _both_notes(target: Target, **call: Any) -> str | None:
    notes = [n for n in (_taps_note(target, **call), _compute_note(target, **call)) if n]
    return "; ".join(notes) or None


def _conv2d_pays(target: Target, **call: Any) -> Verdict:
    kernel = call["weight"].shape[2]
    if kernel > 1:
        return Verdict(
            True, f"one of {kernel} temporal taps sees frames that are not zero; the others are dropped"
        )
    if target.is_gpu:
        return Verdict(
            True, "kT=1: it is a conv2d on frames, for which libraries have more and faster kernels"
        )
    return Verdict(False, "kT=1, and on a CPU conv3d is as fast")


def _matmul_pays(target: Target, **call: Any) -> Verdict:
    if target.is_gpu:
        return Verdict(True, "kernel = stride: a matrix product, without the library's convolution")
    return Verdict(False, "on a CPU the library's convolution is as fast")


def _taps_pay(target: Target, **call: Any) -> Verdict:
    kernel, live = call["weight"].shape[2], live_taps(**call)
    spatial = tuple(call["weight"].shape[3:])
    if live is not None and 1 < live < kernel:
        return Verdict(
            True, f"{live} of {kernel} temporal taps see frames that are not zero; the others are dropped"
        )
    if target.vendor == "amd":
        # Not run by us on AMD hardware: the published winner over MIOpen's conv3d and over the unfolded copy.
        return Verdict(
            True,
            "rule from published results over MIOpen's conv3d (SeedVR2#634); not measured on this machine",
        )
    if target.vendor == "nvidia" and call["channels_last"] and spatial != (1, 1):
        return _taps_on_nvidia(call["weight"].shape[0], call["weight"].shape[1], call["x"][0].dtype)
    return Verdict(False, "the library's conv3d was the faster one on this kind of device")


def _taps_on_nvidia(out: int, channels: int, dtype: torch.dtype) -> Verdict:
    """As measured on an H200 with channels-last tensors (docs/tuning.md)."""
    if min(out, channels) >= 64 and dtype is torch.float32:
        return Verdict(True, "rule from an H200: in float32 taps take 0.6 of the time of cuDNN's conv3d")
    if min(out, channels) >= 64 and channels % 64 and dtype in LOW_PRECISION:
        return Verdict(True, "rule from an H200: cuDNN's conv3d is slow at channels not a multiple of 64")
    return Verdict(False, "cuDNN's conv3d was the faster one on an H200")


def _direct_pays(target: Target, **call: Any) -> Verdict:
    if call["channels_last"]:
        return Verdict(True, "channels-last through the whole graph, without conversions between neighbours")
    if call["absorbed"]:
        return Verdict(True, "the padding in front of it becomes the convolution's own, without a copy")
    if call.get("compute"):
        return Verdict(True, "conv_dtype was asked for")
    return Verdict(False, "it is what the graph has")


def _unfold_pays(target: Target, **call: Any) -> Verdict:
    return Verdict(False, "the sum over taps does the same work without the unfolded copy")


def _taps_tiled_pay(target: Target, **call: Any) -> Verdict:
    return Verdict(False, "one call per tap is faster; tiles bound the peak memory")


def _tiled_pays(target: Target, **call: Any) -> Verdict:
    return Verdict(False, "one call is faster; tiles bound the peak memory")


def _writes(write: Any) -> Any:
    """`absorbed` and `largest_mib` are for choosing: what was absorbed shows in the pieces and the padding."""

    def written(
        b: Any, *, absorbed: bool = False, largest_mib: float = 0.0, extra_frames: int = 0, **call: Any
    ) -> Any:
        return write_rounded_up(b, write, extra_frames, **call) if extra_frames else write(b, **call)

    return written


#: These compute with every temporal tap, also with those that see zeros alone.
WHOLE_KERNEL = frozenset({"direct", "tiled"})

LOWERINGS = (
    Lowering(
        "matmul", refuses=_refuses_matmul, note=_compute_note, pays=_matmul_pays, write=_writes(write_matmul)
    ),
    Lowering(
        "conv2d", refuses=_refuses_conv2d, note=_compute_note, pays=_conv2d_pays, write=_writes(write_conv2d)
    ),
    Lowering("taps", refuses=_refuses_taps, note=_both_notes, pays=_taps_pay, write=_writes(write_taps)),
    Lowering(
        "taps_tiled",
        refuses=_refuses_taps_tiled,
        note=_both_notes,
        pays=_taps_tiled_pay,
        write=_writes(write_taps_tiled),
    ),
    Lowering("direct", note=_compute_note, pays=_direct_pays, write=_writes(write_direct)),
    Lowering(
        "unfold", refuses=_refuses_unfold, note=_compute_note, pays=_unfold_pays, write=_writes(write_unfold)
    ),
    Lowering(
        "tiled", refuses=_refuses_tiled, note=_compute_note, pays=_tiled_pays, write=_writes(write_tiled)
    ),
)
