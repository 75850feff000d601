"""Conv2d as ATen's convolution has it, of pixels that nearest upsampling may repeat in front."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.aten_convolution import AtenConvolution, by, in_words, repeated
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.operator import Computation


@dataclass(frozen=True)
class Conv2d(AtenConvolution):
    """The arguments of aten.convolution, x [N, C, H, W].

    channels_last: whether x, the weight and the result are channels-last in memory.
    upsample: how often each pixel of x stands in the convolution's input, down and across.
    """

    channels_last: bool = True
    upsample: tuple[int, int] = (1, 1)

    def rank(self) -> int:
        # Of a call whose tensors are nodes, too.
        return 2

    def sizes_read(self) -> tuple[int, ...]:
        height, width = self.x.shape[2:]
        return height * self.upsample[0], width * self.upsample[1]

    def input(self) -> Tensor:
        """What is convolved, of a call with tensors."""
        return repeated(self.x, self.upsample)

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
        x, weight = (self.input().unsqueeze(2),), self.weight.unsqueeze(2)
        return Conv3d(x, weight, self.bias, groups=self.groups, **self.of_video())

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.x.dtype)
        stride, padding, dilation = map(self.each, ("stride", "padding", "dilation"))
        told = replace(self, stride=stride, padding=padding, dilation=dilation)
        shapes = f"x {by(self.x.shape)} w {by(self.weight.shape)}"
        if self.upsample != (1, 1):
            shapes += f" upsampled {by(self.upsample)}"
        return f"conv2d {dtype} {shapes} {in_words(told, dtype)}".rstrip()


CONV2D = Computation("conv2d", Conv2d)
