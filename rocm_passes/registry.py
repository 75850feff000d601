"""What is looked for, in which order."""

from __future__ import annotations

from rocm_passes.idioms.convolution import conv2d, conv3d, pad, upsampled_conv
from rocm_passes.idioms.norms import (
    channel_norm,
    group_norm,
    group_norm_pad,
    layer_norm,
    norm_chain,
    rms_norm,
)
from rocm_passes.idioms.rotary import qk_norm_rotary, rotary, rotary_pair
from rocm_passes.kernels import register_lowerings
from rocm_passes.rewrite.match import Idiom

register_lowerings()

#: Larger fusions first: a node that one idiom has taken is not offered to the next.
IDIOMS: tuple[Idiom, ...] = (
    qk_norm_rotary.IDIOM,
    rotary_pair.IDIOM,
    *norm_chain.IDIOMS,
    rms_norm.IDIOM,
    layer_norm.IDIOM,
    group_norm_pad.IDIOM,
    group_norm.IDIOM,
    channel_norm.IDIOM,
    rotary.IDIOM,
    upsampled_conv.IDIOM,
    conv3d.IDIOM,
    conv2d.IDIOM,
    # Behind conv3d, which has padding of its own for zeros.
    pad.IDIOM,
)


def idiom_names() -> tuple[str, ...]:
    return tuple(i.name for i in IDIOMS)


def lowering_names() -> dict[str, tuple[str, ...]]:
    return {i.name: tuple(low.name for low in i.lowerings) for i in IDIOMS}
