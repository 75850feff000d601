"""A transposed convolution as ATen has it, over [N, C, H, W] or [N, C, T, H, W]."""

from __future__ import annotations

from dataclasses import dataclass

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.aten_convolution import AtenConvolution, by, in_tf32
from rocm_passes.ops.operator import Computation

#: The spatial arguments, in ATen's order.
SPATIAL = ("stride", "padding", "dilation", "output_padding")


@dataclass(frozen=True)
class ConvTransposed(AtenConvolution):
    """The arguments of aten.convolution, `transposed` among them."""

    @property
    def channels_last(self) -> bool:
        """Measured as it is: no layout is asked for."""
        return False

    def overlaps(self) -> str | None:
        """Why an output is a sum over several pixels of the input, or over none; None where it is
        of exactly one.
        """
        kernel = tuple(self.weight.shape[2:])
        if kernel != self.each("stride"):
            return f"kernel {by(kernel)} and stride {by(self.each('stride'))}: outputs overlap"
        if any(self.each("padding")) or any(self.each("output_padding")):
            return "it has padding"
        if any(d != 1 for d, k in zip(self.each("dilation"), kernel, strict=True) if k > 1):
            return f"dilation={self.each('dilation')}"
        return None

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.x.dtype)
        usual = (1, 0, 1, 0)
        words = [f"conv_transposed {dtype} x {by(self.x.shape)} w {by(self.weight.shape)}"]
        words += [
            f"{name} {by(self.each(name))}"
            for name, value in zip(SPATIAL, usual, strict=True)
            if set(self.each(name)) != {value}
        ]
        words += [f"groups {self.groups}"] if self.groups != 1 else []
        return " ".join([*words, in_tf32(dtype)]).rstrip()


CONV_TRANSPOSED = Computation("conv_transposed", ConvTransposed)
