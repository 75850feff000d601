"""aiter's convolutions as lowerings of their operator: the whole contract is checked before a call.

    flydsl      `flydsl_conv_implicit`: gfx950, bfloat16, any groups
    triton      `conv2d_*` and `conv3d`, channels-last: where aiter has tables for the architecture
    winograd    `conv2d_winograd_f4x3`: rounds its transforms to bfloat16

conv3d's Winograd is never called: it stores transforms of bfloat16 values as float16, where a
finite input can become infinite.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.kernels.aiter import contract, conv_entries, installation
from rocm_passes.kernels.aiter.conv_contract import FEATURES, FLYDSL_ARCHS, ConvEntry, refusal
from rocm_passes.ops.aiter_conv import AITER_CONV, AiterConv, fake, reference
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Requirement, Target

log = logging.getLogger(__name__)

#: Calls that have run once: their kernels are compiled, so that a graph capture may hold them.
_RAN: set[tuple[Any, ...]] = set()


def aiter_conv(call: AiterConv, entry: ConvEntry) -> Tensor:
    """The call by aiter's function; a fresh channels-last tensor.

    Raises AiterContractError instead of calling aiter with what it does not take. Within a graph
    capture a call that has not run before goes to torch's convolution: compiling and timing must
    not happen there.
    """
    contract.enforce(f"{entry} convolution", refusal(call, entry))
    promised = fake(call)
    if promised.numel() == 0:
        return promised
    key = _key(call, entry)
    if key not in _RAN and capturing(call.x):
        log.warning(
            "rocm_passes: aiter's %s convolution was first called within a graph capture; the "
            "graph holds torch's. Run the model once before it is captured.",
            entry,
        )
        return reference(call)
    y = conv_entries.convolve(call, entry)
    if y.shape != promised.shape or y.dtype != promised.dtype:
        raise contract.AiterContractError(
            f"aiter's {entry} convolution returned {dtype_name(y.dtype)} of shape "
            f"{contract.shape_name(y)}, not {contract.shape_name(promised)}"
        )
    _RAN.add(key)
    return y if y.stride() == promised.stride() else promised.copy_(y)


def capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _key(call: AiterConv, entry: ConvEntry) -> tuple[Any, ...]:
    """What aiter compiles a kernel for."""
    parameters = (tuple(call.stride), tuple(call.padding), tuple(call.dilation), call.groups)
    bias = None if call.bias is None else call.bias.dtype
    shapes = (tuple(call.x.shape), tuple(call.weight.shape))
    return (entry, call.x.device, call.x.dtype, bias, *shapes, *parameters)


def needs_conv(entry: ConvEntry) -> Requirement:
    """aiter's function: found by its signature, importable, with tables for the architecture."""
    feature = FEATURES[entry, 2]
    module = conv_entries.FLYDSL if entry == "flydsl" else conv_entries.CONV2D

    def check(target: Target) -> str | None:
        if entry == "flydsl" and target.vendor == "amd" and target.arch not in FLYDSL_ARCHS:
            archs = ", ".join(FLYDSL_ARCHS)
            return f"aiter's FlyDSL convolution runs on {archs}, and this is {target.arch}"
        reason = installation.needs_aiter(target) or next(contract.available(feature), None)
        if reason is None and entry != "flydsl" and not installation.has_conv_tables(target.arch):
            reason = f"this aiter has no tables of convolutions for {target.arch}"
        reason = reason or installation.import_error(module)
        if reason is None and entry != "flydsl" and not conv_entries.packs():
            reason = "this aiter keeps packed weights where they cannot be dropped"
        return reason

    return check


def lowering_refuses(entry: ConvEntry) -> Callable[[AiterConv, Target], str | None]:
    def refuses(call: AiterConv, target: Target) -> str | None:
        return refusal(call, entry, target.arch)

    return refuses


def inexact(entry: ConvEntry) -> str | None:
    """Why no bound on the error follows from the graph's, or None."""
    if entry != "winograd":
        return None
    return "Winograd's transforms are rounded to bfloat16, and amplified by up to 361"


def _register(entry: ConvEntry) -> None:
    def run(call: AiterConv) -> Tensor:
        return aiter_conv(call, entry)

    AITER_CONV.register(
        Lowering(
            entry,
            requires=(installation.needs_aiter,),
            refuses=lowering_refuses(entry),
            inexact=lambda call, target: inexact(entry),
            run=run,
        )
    )


_register("flydsl")
_register("triton")
_register("winograd")
