"""The same convolution, its input and weight channels-last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for

from rocm_passes.ops.conv2d import CONV2D, Conv2d
from rocm_passes.ops.operator import Lowering


def write(b: Any, call: Conv2d) -> Any:
    made = replace(call, x=channels_last(b, call.x), weight=channels_last(b, call.weight))
    return b(torch.ops.aten.convolution.default, *made.arguments().values())


def channels_last(b: Any, t: Any) -> Any:
    return b(inductor_prims.force_stride_order, t, make_channels_last_strides_for(b.value(t).shape))


CHANNELS_LAST = CONV2D.register(Lowering("channels_last", write=write))
