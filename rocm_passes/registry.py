"""Everything that the pass does to a graph, in order: three lists."""

from __future__ import annotations

from rocm_passes import option_values
from rocm_passes.idioms.activation import gated_activation, linear_gelu
from rocm_passes.idioms.attention import attention
from rocm_passes.idioms.convolution import conv2d, conv3d, conv_transposed, pad, upsampled_conv
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
from rocm_passes.passes import (
    cast_by_int32,
    drop_identities,
    fold_conv_bias,
    fold_residual,
    gather_in_norm,
    mark_launcher,
    memory_format,
    read_parts,
    slice_before_cat,
    sort_depth_to_space,
    write_into_cat,
)
from rocm_passes.rewrite.match import Idiom
from rocm_passes.rewrite.work import WholeGraphPass

#: Before the idioms are looked for.
PREPARE: tuple[WholeGraphPass, ...] = (
    drop_identities.PASS,
    slice_before_cat.PASS,
    sort_depth_to_space.PASS,
)

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
    conv_transposed.IDIOM,
    # Behind conv3d, which has padding of its own for zeros.
    pad.IDIOM,
    attention.IDIOM,
    gated_activation.IDIOM,
    linear_gelu.IDIOM,
)

#: After the rewrites: what hands our operators the nodes around them.
FINISH: tuple[WholeGraphPass, ...] = (
    gather_in_norm.PASS,
    fold_conv_bias.PASS,
    fold_residual.PASS,
    write_into_cat.PASS,
    mark_launcher.PASS,
    read_parts.PASS,
    memory_format.PASS,
    cast_by_int32.PASS,
)


def idiom_names() -> tuple[str, ...]:
    return tuple(i.name for i in IDIOMS)


def lowering_names() -> dict[str, tuple[str, ...]]:
    return {i.name: tuple(low.name for low in i.lowerings) for i in IDIOMS}


option_values.declare(lowering_names)
