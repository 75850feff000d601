"""Upsampling in front of a GroupNorm's multiplier and addend, left to the norm's kernel, which
reads by index.

Before (CogVideoX's SpatialNorm3D)              After
    m = cat([index(y[:, :, :1],                     i = cat([index(numbers of y's pixels, ...),
                   [None, None, t, h, w]),                   ...], 2)
             index(y[:, :, 1:], ...)], 2)           z = rocm_passes.group_norm(x, ..., multiplier y,
    z = rocm_passes.group_norm(x, ...,                      addend b, pixel_index i)
            multiplier m, addend a)

m and a are as large as x, which has thousands of bytes for each of y's pixels; i has four for each
of x's. It is made by the very moves that made m, applied to numbers: right for any gathers,
whatever they are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.idioms.convolution import pixels
from rocm_passes.ops.group_norm import GROUP_NORM
from rocm_passes.ops.upsampled_conv import Moved, write_moves
from rocm_passes.policy.bounds import LEAST_REPETITION
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_DID = "group_norm reads its multiplier and addend as they were before upsampling, by index"
_REASON = "each element is the same number, read from where the upsampling took it"


def gather_in_norm(graph: fx.Graph, fake_mode: FakeTensorMode) -> dict[fx.Node, Moved]:
    """The norms whose operands are now read by index, each with what was upsampled."""
    found = {}
    for norm in n.calls(graph, GROUP_NORM.overload):
        call = GROUP_NORM.call_of(norm)
        if GROUP_NORM.lowering_of(norm) != "triton" or call.pixel_index is not None:
            continue
        multiplier, addend = (
            _upsampled(operand, norm) for operand in (call.multiplier, call.addend)
        )
        if multiplier is None or addend is None or _placing(multiplier) != _placing(addend):
            continue
        _absorb(norm, multiplier, addend, fake_mode)
        found[norm] = multiplier
    return found


def _upsampled(operand: object, norm: fx.Node) -> Moved | None:
    """The operand as the pixels of one tensor, each in several places; None where it isn't."""
    if not isinstance(operand, fx.Node) or not n.same_shape(n.shape(operand), n.shape(norm)):
        return None
    moved = pixels.read(operand)
    sources = {piece.source for piece in moved.pieces}
    if not pixels.repeats(moved) or len(sources) > 1 or any(piece.casts for piece in moved.pieces):
        return None
    if not all(pixels.sizes_are_known(node) for node in (operand, *sources)):
        return None
    enough = pixels.pixels(operand) >= LEAST_REPETITION.value * pixels.source_pixels(moved)
    return moved if enough else None


def _placing(moved: Moved) -> object:
    """Where the pixels go: the same for two tensors that one index serves."""
    (size, *_) = [n.shape(piece.source)[2:] for piece in moved.pieces]
    return size, moved.dim, [piece.moves for piece in moved.pieces]


def _absorb(norm: fx.Node, multiplier: Moved, addend: Moved, fake_mode: FakeTensorMode) -> None:
    source = multiplier.pieces[0].source
    size = n.shape(source)[2:]
    with norm.graph.inserting_before(norm):
        b = Builder(norm.graph, fake_mode, norm)
        numbers = b(
            prims.iota.default,
            math.prod(size),
            start=0,
            step=1,
            dtype=torch.int32,
            device=n.tensor(source).device,
            requires_grad=False,
        )
        numbers = b(aten.reshape.default, numbers, [1, 1, *size])
        parts = [write_moves(b, piece.moves, numbers) for piece in multiplier.pieces]
        index = parts[0] if multiplier.dim is None else b(aten.cat.default, parts, multiplier.dim)
        index = b(aten.reshape.default, index, list(n.shape(norm)[2:]))
    GROUP_NORM.update(norm, multiplier=source, addend=addend.pieces[0].source, pixel_index=index)


def _applies(work: Work) -> bool:
    return work.rewritten > 0


def _run(work: Work) -> Sequence[Change]:
    changes = []
    for norm, moved in gather_in_norm(work.graph, work.fake_mode).items():
        counts = {
            "pixels": math.prod(n.shape(norm)[2:]),
            "source_pixels": pixels.source_pixels(moved),
        }
        work.amend(norm, counts)
        changes.append(change_at(norm, _DID, _REASON, **counts))
    work.graph.eliminate_dead_code()
    return changes


PASS = WholeGraphPass("gather_in_norm", _run, _applies)
