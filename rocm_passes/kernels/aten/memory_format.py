"""Memory formats in the graph: what a lowering asks Inductor for."""

from __future__ import annotations

from typing import Any

from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for, make_contiguous_strides_for


def channels_last(b: Any, t: Any) -> Any:
    """Costs nothing where t is channels-last, or where Inductor may still choose its layout."""
    return b(inductor_prims.force_stride_order, t, make_channels_last_strides_for(b.value(t).shape))


def as_the_graphs(b: Any, y: Any, channels_last: bool) -> Any:
    """A channels-last result in the format of the graph's convolutions."""
    if channels_last:
        return y
    return b(inductor_prims.force_stride_order, y, make_contiguous_strides_for(b.value(y).shape))
