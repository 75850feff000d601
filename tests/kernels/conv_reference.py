"""What the convolution kernels should give: plain torch in float64, and inputs in every layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels.triton.convolution.implicit_gemm.call import Conv

#: Units of the result's dtype at 1. Rounding is off by half of one at most; the interpreter, which
#: truncates to bf16, by a whole one.
UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-20}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv: Conv | None = None,
    front: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """In float64, whatever the dtypes."""
    conv = conv or Conv()
    time, *space = conv.upsample
    seen = x.double().repeat_interleave(time, 2)[:, :, conv.skipped :]
    if front is not None:
        seen = torch.cat([front.double(), seen], 2)
    for dim, repeat in enumerate(space, start=3):
        seen = seen.repeat_interleave(repeat, dim)
    (t0, t1), (h0, h1), (w0, w1) = conv.padding
    seen = F.pad(
        seen, (w0, w1, h0, h1, 0, 0), "replicate" if conv.space == "replicate" else "constant"
    )
    seen = F.pad(
        seen, (0, 0, 0, 0, t0, t1), "replicate" if conv.time == "replicate" else "constant"
    )
    y = F.conv3d(
        seen,
        weight.double(),
        None if bias is None else bias.double(),
        stride=conv.stride,
        dilation=conv.dilation,
    )
    if residual is not None:
        y = y + residual.double()
    return F.silu(y) if silu else y


def video(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "channels-last") -> Tensor:
    """Normally distributed values; "sliced" is channels-last with gaps along every dim."""
    if layout == "sliced":
        n, c, t, h, w = shape
        whole = torch.randn(n + 1, t + 2, h + 1, w + 3, c + 5)
        return whole.to(dtype)[1:, 1:-1, :h, 2 : 2 + w, 3 : 3 + c].permute(0, 4, 1, 2, 3)
    x = torch.randn(shape).to(dtype)
    return x if layout == "contiguous" else x.contiguous(memory_format=torch.channels_last_3d)


def kernel(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A weight whose result has a variance of about 1."""
    weight = torch.randn(shape)
    return (weight / weight[0].numel() ** 0.5).to(dtype)


def check(y: Tensor, exact: Tensor) -> None:
    """Shape, layout, and one rounding's error for each element, besides that of a sum in fp32."""
    assert y.shape == exact.shape
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    bound = UNIT[y.dtype] * exact.abs() + 2.0**-18
    error = (y.double() - exact).abs()
    assert bool((error <= bound).all()), (
        f"an error of {(error / bound).max().item():.3g} times the bound"
    )
