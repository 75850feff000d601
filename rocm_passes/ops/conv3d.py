"""conv3d over a video in pieces: each way to compute it is written in plain ATen
(kernels/aten/conv3d.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.aten_convolution import by, in_words
from rocm_passes.ops.operator import Call, Computation
from rocm_passes.ops.time_axis import TimeAxis, frames_of, out_size

#: Root mean square error of a convolution of normally distributed values in that dtype, over the
#: rms of its result: the values, the weight and the result (of each tap) are rounded, sums are kept
#: in float32.
COMPUTE_ERRORS = {torch.bfloat16: 2.8e-3, torch.float16: 3.4e-4}


@dataclass(frozen=True)
class Conv3d(Call):
    """Returns [N, O, T', H', W'] in x's dtype.

    x: pieces [N, C, T_i, H, W] that stand end to end in time (one, where nothing was absorbed).
    weight: [O, C/groups, kT, kH, kW]. bias: [O] or None. zeros: zero frames before and after the
    pieces. stride, dilation: as of torch.nn.functional.conv3d, 3-tuples. padding: (H, W), zeros on
    both sides. channels_last: whether x, the weight and the result are channels-last in memory.
    compute: dtype to convolve in, or None for x's own. absorbed: padding or a cat in front of the
    graph's convolution is part of the call. largest_mib: input and result of the graph's largest
    call, for the choice between lowerings. extra_frames: output frames that are computed in excess
    and left out, so that calls of one bucket are alike.
    """

    x: tuple[Tensor, ...]
    weight: Tensor
    bias: Tensor | None
    zeros: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    channels_last: bool = False
    compute: torch.dtype | None = None
    absorbed: bool = False
    largest_mib: float = 0.0
    extra_frames: int = 0

    def axis(self) -> TimeAxis:
        """The time axis as the lowerings see it: frames in excess are there."""
        frames = frames_of(self.x) + self.extra_frames * self.stride[0]
        kernel = int(self.weight.shape[2])
        return TimeAxis(
            frames, self.zeros[0], self.zeros[1], kernel, self.stride[0], self.dilation[0]
        )

    def live_taps(self) -> int | None:
        """How many temporal taps see a real frame, or None where the number of frames is
        symbolic.
        """
        axis = self.axis()
        return len(axis.taps()) if isinstance(axis.frames, int) else None

    def spares_taps(self) -> bool:
        """One temporal tap of several sees a real frame: the first frame of a video, or an
        image.
        """
        return bool(self.weight.shape[2] > 1 and self.live_taps() == 1)

    def not_a_product(self) -> str | None:
        """Why it is no matrix product of patches, or None where it is."""
        kernel = tuple(self.weight.shape[2:])
        if kernel != tuple(self.stride):
            return "the kernel is not as large as the stride: inputs are read more than once"
        if self.groups != 1:
            return f"groups={self.groups}"
        if any(self.padding) or any(self.zeros):
            return "it has padding"
        if any(d != 1 for d, k in zip(self.dilation, kernel, strict=True) if k > 1):
            return f"dilation={tuple(self.dilation)}"
        return None

    def is_patch_embedding(self) -> bool:
        """A matrix product, of patches of more than one element."""
        return self.not_a_product() is None and math.prod(self.weight.shape[2:]) > 1

    def rounded_up(self, bucket: int) -> Conv3d:
        """The call with output frames in excess, so that their number is a multiple of `bucket`.

        None for a single frame, whose cost would be a multiple, and none where zero frames spare a
        temporal tap.
        """
        axis = self.axis()
        spared = axis.kernel == 1 and any(self.zeros)
        if (
            not bucket
            or not isinstance(axis.out, int)
            or axis.out < 2
            or spared
            or self.live_taps() != axis.kernel
        ):
            return self
        return replace(self, extra_frames=-axis.out % bucket)

    def tensors_mib(self) -> float:
        """Input and result together, of a call with numbers for sizes; 0 where one is symbolic."""
        elements = sum(math.prod(piece.shape) for piece in self.x) + self._result_elements()
        return elements * self.x[0].itemsize / 2**20 if isinstance(elements, int) else 0.0

    def unfolded_mib(self) -> float | None:
        """The input frames of every tap side by side, or None where their number is symbolic."""
        frames = self.axis().out
        n, c, _, h, w = self.x[0].shape
        elements = math.prod((n, c, self.weight.shape[2], frames, h, w))
        dtype = self.compute or self.x[0].dtype
        return elements * dtype.itemsize / 2**20 if isinstance(elements, int) else None

    def flops(self) -> float:
        """Floating-point operations of the call with numbers for sizes, taps on zero frames
        included.
        """
        return float(2 * self._result_elements() * math.prod(self.weight.shape[1:]))

    def _result_elements(self) -> Any:
        x, weight = self.x[0], self.weight
        spatial = zip(
            x.shape[3:],
            weight.shape[3:],
            self.stride[1:],
            self.padding,
            self.dilation[1:],
            strict=True,
        )
        sizes = [out_size(*dim) for dim in spatial]
        return math.prod((x.shape[0], weight.shape[0], self.axis().out, *sizes))

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.compute or self.x[0].dtype)
        sizes = [list(piece.shape) for piece in self.x]
        # Calls of one bucket have one key.
        sizes[-1][2] += self.extra_frames * self.stride[0]
        shapes = f"x {' + '.join(map(by, sizes))} w {by(self.weight.shape)}"
        return f"conv3d {dtype} {shapes} {in_words(self, dtype, self.zeros)}".rstrip()


CONV3D = Computation("conv3d", Conv3d)
