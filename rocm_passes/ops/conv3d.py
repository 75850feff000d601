"""Lowerings of conv3d in plain ATen: exact algebra, which Inductor plans and fuses around.

All take x [N, C, T, H, W], weight [O, C/groups, kT, kH, kW], bias [O] or None, and the parameters of
torch.nn.functional.conv3d as 3-tuples (groups an int), and give [N, O, T', H', W'].
The weight is only ever viewed: nothing is copied or kept outside the graph that a later change of the weight
(a LoRA merge, a cast) could leave stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..target import Target
from .operator import Lowering, Verdict

aten = torch.ops.aten


class Writer(Protocol):
    """A graph Builder, or its eager stand-in."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any: ...
    def value(self, found: Any) -> torch.Tensor: ...


def out_size(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """Size of a convolution's output along one dim; not positive where there is none."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def write_unfold(
    b: Writer,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    """One conv2d over every output frame's temporal window: the kT input frames become channels.

    The unfolded copy is kT times the input. Source: the temporal unfold of sgl-project/sglang#22971.
    """
    taps = _taps(b, x, weight, stride, padding, dilation)
    n, _, t_out, h, w = _sizes(b, taps[0])
    o, c, kt, kh, kw = _sizes(b, weight)
    # Channel-major, tap-minor, as weight[O, C/groups, kT, ...] reads as a 2-D kernel; groups stay whole.
    windows = b(aten.cat.default, [b(aten.unsqueeze.default, tap, 2) for tap in taps], 2)
    frames = b(aten.permute.default, windows, [0, 3, 1, 2, 4, 5])
    frames = b(aten.reshape.default, frames, [n * t_out, c * groups * kt, h, w])
    kernel = b(aten.reshape.default, weight, [o, c * kt, kh, kw])
    y = _conv2d(b, frames, kernel, bias, stride, padding, dilation, groups)
    return _to_video(b, y, n, t_out)


def write_taps(
    b: Writer,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    """The sum of kT conv2d, one per temporal tap; no unfolded copy. Partial sums are added in fp32.

    Source: numz/ComfyUI-SeedVR2_VideoUpscaler#634.
    """
    taps = _taps(b, x, weight, stride, padding, dilation)
    n, _, t_out, _, _ = _sizes(b, taps[0])
    out_dtype = b.value(x).dtype
    total = None
    for k, tap in enumerate(taps):
        kernel = b(aten.select.int, weight, 2, k)
        frames = _to_frames(b, tap)
        y = _conv2d(b, frames, kernel, bias if k == 0 else None, stride, padding, dilation, groups)
        if out_dtype in (torch.float16, torch.bfloat16) and len(taps) > 1:
            y = b(torch.ops.prims.convert_element_type.default, y, torch.float32)
        total = y if total is None else b(aten.add.Tensor, total, y)
    if b.value(total).dtype is not out_dtype:
        total = b(torch.ops.prims.convert_element_type.default, total, out_dtype)
    return _to_video(b, total, n, t_out)


def _taps(
    b: Writer, x: Any, weight: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    """For each temporal tap the frames that it sees, [N, C, T', H, W]."""
    if padding[0]:
        x = b(aten.constant_pad_nd.default, x, [0, 0, 0, 0, padding[0], padding[0]], 0.0)
    t = b.value(x).shape[2]
    kt = int(b.value(weight).shape[2])
    t_out = out_size(t, kt, stride[0], 0, dilation[0])
    taps = []
    for k in range(kt):
        start = k * dilation[0]
        end = start + (t_out - 1) * stride[0] + 1
        taps.append(b(aten.slice.Tensor, x, 2, start, end, stride[0]))
    return taps


def _to_frames(b: Writer, x: Any) -> Any:
    """[N, C, T, H, W] to [N*T, C, H, W]."""
    n, c, t, h, w = _sizes(b, x)
    return b(aten.reshape.default, b(aten.permute.default, x, [0, 2, 1, 3, 4]), [n * t, c, h, w])


def _to_video(b: Writer, y: Any, n: Any, t: Any) -> Any:
    """[N*T, O, H, W] to [N, O, T, H, W], a view."""
    _, o, h, w = _sizes(b, y)
    return b(aten.permute.default, b(aten.reshape.default, y, [n, t, o, h, w]), [0, 2, 1, 3, 4])


def _conv2d(
    b: Writer,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    return b(
        aten.convolution.default,
        x,
        weight,
        bias,
        list(stride[1:]),
        list(padding[1:]),
        list(dilation[1:]),
        False,
        [0, 0],
        groups,
    )


def _sizes(b: Writer, x: Any) -> tuple[Any, ...]:
    return tuple(b.value(x).shape)


def _refuses_taps(weight: torch.Tensor, **_: Any) -> str | None:
    return "kT=1: there is one tap, use 'unfold'" if weight.shape[2] == 1 else None


def _pays_on_amd(target: Target, **_: Any) -> Verdict:
    # Not run by us on AMD hardware; the published winner over MIOpen's conv3d.
    if target.vendor == "amd":
        return Verdict(
            True,
            "rule from published results over MIOpen's conv3d (sglang#22971); not measured on this machine",
        )
    return Verdict(False, "the library's conv3d was the faster one on this kind of device")


def _taps_note(target: Target, x: torch.Tensor, weight: torch.Tensor, **_: Any) -> str | None:
    if x.dtype in (torch.float16, torch.bfloat16):
        return f"each tap's sum is rounded to {str(x.dtype).removeprefix('torch.')} before the taps are added"
    return None


LOWERINGS = (
    Lowering("unfold", pays=_pays_on_amd, write=write_unfold),
    Lowering("taps", refuses=_refuses_taps, note=_taps_note, write=write_taps),
)
