"""Conv2d as ATen's convolution has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.aten_convolution import AtenConvolution, by, in_words
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.operator import Computation


@dataclass(frozen=True)
class Conv2d(AtenConvolution):
    """The arguments of aten.convolution, x [N, C, H, W].

    channels_last: whether x, the weight and the result are channels-last in memory.
    """

    channels_last: bool = True

    def rank(self) -> int:
        # Of a call whose tensors are nodes, too.
        return 2

    def of_video(self) -> dict[str, Any]:
        """The parameters of the same convolution over a video of 1 frame."""
        return {
            "zeros": (0, 0),
            "stride": (1, *self.each("stride")),
            "padding": self.each("padding"),
            "dilation": (1, *self.each("dilation")),
        }

    def as_video(self) -> Conv3d:
        """The same over a video of 1 frame, of a call that is not transposed."""
        x, weight = (self.x.unsqueeze(2),), self.weight.unsqueeze(2)
        return Conv3d(x, weight, self.bias, groups=self.groups, **self.of_video())

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.x.dtype)
        stride, padding, dilation = map(self.each, ("stride", "padding", "dilation"))
        told = replace(self, stride=stride, padding=padding, dilation=dilation)
        shapes = f"x {by(self.x.shape)} w {by(self.weight.shape)}"
        return f"conv2d {dtype} {shapes} {in_words(told, dtype)}".rstrip()


CONV2D = Computation("conv2d", Conv2d)
