"""Calls of every operator, on both sides of every bound of the rules, with meta tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rocm_passes.ops.attention import Attention
from rocm_passes.ops.channel_norm import ChannelNorm
from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.conv_transposed import ConvTransposed
from rocm_passes.ops.fused_norm import FusedNorm
from rocm_passes.ops.gated_activation import GatedActivation
from rocm_passes.ops.group_norm import GroupNorm
from rocm_passes.ops.group_norm_pad import GroupNormPad
from rocm_passes.ops.layer_norm import LayerNorm
from rocm_passes.ops.linear_gelu import LinearGelu
from rocm_passes.ops.pad import Pad
from rocm_passes.ops.qk_norm_rotary import SpelledQkNormRotary, Streams
from rocm_passes.ops.rms_norm import RmsNorm
from rocm_passes.ops.rotary import SpelledRotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.ops.rotary_pair import SpelledRotaryPair
from rocm_passes.ops.upsampled_conv import Moved, Piece, UpsampledConv
from rocm_passes.target import Target

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

TARGETS = {
    "gfx942": Target("amd", "gfx942", "MI300X", "2.13", "3.6"),
    "gfx950": Target("amd", "gfx950", "MI355X", "2.13", "3.6"),
    "gfx1100": Target("amd", "gfx1100", "RX 7900", "2.13", "3.6"),
    "gfx1201": Target("amd", "gfx1201", "RX 9070", "2.13", "3.6"),
    "sm_90": Target("nvidia", "sm_90", "H200", "2.13", "3.6"),
    "cpu": Target("cpu", "", "CPU", "2.13", None),
}

#: Rows and columns on both sides of 1024 columns, of 3072 rows, and of 2^20 and 2^22 elements.
ROWS = [
    (512, 1023),
    (1025, 1023),
    (4100, 1023),
    (64, 1024),
    (1023, 1024),
    (1024, 1024),
    (3071, 1024),
]
ROWS += [
    (3072, 1024),
    (4095, 1024),
    (4096, 1024),
    (512, 3072),
    (1024, 3840),
    (3072, 3840),
    (236544, 64),
]


def meta(*shape: Any, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def with_symbol(*shape: Any, least: int = 0) -> Tensor:
    """A tensor of this shape. Its first size is a symbol, known to be at least `least`."""
    sizes = ShapeEnv()
    with FakeTensorMode(shape_env=sizes):
        size = sizes.create_unbacked_symint()
        torch._check(size >= least)
        return torch.empty((size, *shape[1:]), dtype=BF16, device="meta")


def rows() -> Iterator[Tensor]:
    yield from (meta(*shape) for shape in ROWS)
    yield meta(2, 1536, 3840)
    yield with_symbol(4096, 3072)


@contextmanager
def surroundings(graphs: bool) -> Iterator[None]:
    """What rules ask for beside the call: CUDA graphs or none, and the ROCm of torch's build."""
    with (
        config.patch({"triton.cudagraphs": graphs}),
        mock.patch.object(torch.version, "hip", "7.0.2"),
    ):
        yield


def calls() -> dict[str, list[Any]]:
    """The calls of each computation, by its name."""
    return {
        "rms_norm": [rms_norm(x) for x in rows()],
        "layer_norm": [LayerNorm(x, None, None, 1e-6, x.dtype) for x in rows()],
        "fused_norm": list(chains()),
        "group_norm": list(group_norms()),
        "group_norm_pad": list(padded_norms()),
        "channel_norm": list(channel_norms()),
        "pad": list(pads()),
        "conv2d": [Conv2d(meta(1, 8, 9, 9), meta(8, 8, 3, 3), None, [1], [1], [1], False, [0], 1)],
        "conv3d": list(convolutions()),
        "conv_transposed": [
            ConvTransposed(meta(1, 8, 9, 9), meta(8, 8, 2, 2), None, [2], [0], [1], True, [0], 1)
        ],
        "upsampled_conv": list(upsampled()),
        "attention": list(attentions()),
        "gated_activation": [GatedActivation(meta(8, 8), meta(8, 8), "silu")],
        "linear_gelu": [LinearGelu(meta(8, 8), meta(8, 8), meta(8), (8, 8), "tanh")],
        "rotary": [rotation(x, *kind) for x in heads() for kind in SPELLINGS],
        "rotary_pair": [rotation_pair(x, *kind) for x in heads() for kind in SPELLINGS],
        "qk_norm_rotary": [normed_rotation(q) for q in streams()],
    }


def attentions() -> Iterator[Attention]:
    """Head sizes that torch is wrong for, lengths on both sides of 1024, scores that do not fit."""
    kernels = ("flash", "efficient", "math", "cpu")
    lengths = (200, 1024, 16384)
    for kernel, size, length in itertools.product(kernels, (64, 128, 384, 512), lengths):
        q, k = meta(1, 1, length, size), meta(1, 1, max(length, 1024), size)
        yield Attention(q, k, k, None, 0.1, False, 256.0, kernel)
    q = meta(1, 2, 1024, 128)
    yield Attention(q, q, q[:, :, :200], None, 0.1, False, 256.0, "flash")
    yield Attention(q, q, unlike(q), None, 0.1, False, 256.0, "flash")


def unlike(q: Tensor) -> Tensor:
    """Of q's shape, with heads and tokens in the other order in memory."""
    return q.transpose(1, 2).contiguous().transpose(1, 2)


def rms_norm(x: Tensor) -> RmsNorm:
    return RmsNorm(x, None, None, None, 1e-6, 0.0, None, None, x.dtype)


def chains() -> Iterator[FusedNorm]:
    flags = itertools.product(("layer", "rms", "none"), (False, True), (False, True), (False, True))
    for (kind, branch, branch_norm, scaled), x in itertools.product(flags, rows()):
        if branch_norm and not branch:
            continue
        given = {"branch": x if branch else None, "scale0": x if scaled else None}
        yield FusedNorm(**CHAIN | given | {"x": x, "kind": kind, "branch_norm": branch_norm})


CHAIN: dict[str, Any] = dict.fromkeys(FusedNorm.__dataclass_fields__) | {
    "branch_weight_offset": 0.0,
    "branch_eps": 0.0,
    "sum_dtype": BF16,
    "keep_sum": False,
    "eps": 1e-6,
    "weight_offset": 0.0,
    "scale_offset": 1.0,
    "outputs": 1,
    "out_dtype": BF16,
    "rounds_between": False,
}


def images() -> Iterator[Tensor]:
    for shape in ((1, 128, 1024, 1024), (1, 512, 128, 128), (1, 512, 8191, 1), (1, 512, 8192, 1)):
        yield meta(*shape)
        yield meta(*shape, dtype=F32)
    yield with_symbol(1, 512, 128, 128)


def group_norms() -> Iterator[GroupNorm]:
    for x in images():
        yield GroupNorm(x, None, 32, None, None, 1e-6, True, None, None, False, x.dtype)


def padded_norms() -> Iterator[GroupNormPad]:
    for x, last in itertools.product(images(), (False, True)):
        pads = [1, 1, 1, 1]
        yield GroupNormPad(x, None, 32, None, None, 1e-6, True, False, x.dtype, pads, "zeros", last)


def channel_norms() -> Iterator[ChannelNorm]:
    for x, joins in itertools.product(images(), (False, True)):
        arguments = (None, None, None, "l2", 1e-6, 2.0, False, None, False, x.dtype)
        yield ChannelNorm(x, *arguments, joins=joins)


def pads() -> Iterator[Pad]:
    for x, last, repeat, padding in itertools.product(images(), (False, True), (1, 2), (0, 1)):
        yield Pad(x, [padding] * 4, "replicate", [repeat] * 2, 0, last)


def convolutions() -> Iterator[Conv3d]:
    kernels = ((1, 1, 1), (1, 3, 3), (3, 1, 1), (3, 3, 3))
    frames = ((3, (0, 0)), (1, (2, 0)), (2, (1, 0)))
    channels = ((63, 63), (64, 64), (96, 96), (96, 3), (4, 64))
    extras = ((False, None), (True, None), (False, BF16))
    kinds = itertools.product(kernels, frames, channels, (BF16, F16, F32), (False, True))
    for (kernel, (count, zeros), (c, out), dtype, last), extra in itertools.product(kinds, extras):
        if extra != extras[0] and (c, dtype) != (64, F32):
            continue
        absorbed, compute = extra
        x, weight = meta(1, c, count, 8, 8, dtype=dtype), meta(out, c, *kernel, dtype=dtype)
        steps = ([1] * 3, [0, 0], [1] * 3, 1)
        yield Conv3d((x,), weight, None, zeros, *steps, last, compute, absorbed)
    symbolic = with_symbol(3, 96, 8, 8, 1).permute(4, 1, 0, 2, 3)
    yield Conv3d((symbolic,), meta(96, 96, 3, 3, 3), None, [0, 0], *([1] * 3, [1, 1], [1] * 3, 1))


def upsampled() -> Iterator[UpsampledConv]:
    weight = meta(8, 4, 1, 1)
    for small, large in ((8, 8), (7, 9), (8, 12), (10, 15), (8, 16), (2, 64)):
        moved = Moved((Piece(meta(1, 4, small, small), (), ()),), None)
        yield UpsampledConv(moved, weight, None, 1, [1, 4, large, large])


#: A rotation's spelling: by a complex table, and scattered by slice assignment.
SPELLINGS = [(False, False), (True, False), (False, True)]


def heads() -> Iterator[Tensor]:
    for tokens in (64, 341, 342, 4608, 5208, 5209, 32760):
        yield meta(1, tokens, 24, 128)
    yield with_symbol(1, 64, 24, 128)
    yield with_symbol(1, 64, 24, 128, least=100)


def rotation(x: Tensor, complex_table: bool, scattered: bool) -> SpelledRotary:
    return SpelledRotary(x, [], recipe(complex_table, scattered))


def rotation_pair(q: Tensor, complex_table: bool, scattered: bool) -> SpelledRotaryPair:
    kind = recipe(complex_table, scattered)
    return SpelledRotaryPair(q, q, [], kind, kind)


def normed_rotation(q: list[Tensor]) -> SpelledQkNormRotary:
    kind = recipe(False, False)
    alone = Streams((), (), (), (kind,), (kind, ()), None, False, False, True)
    return SpelledQkNormRotary(q, [], [], [], [], alone)


def recipe(complex_table: bool, scattered: bool) -> Recipe:
    return Recipe(
        None, "bsh", 1, True, 128, (), None, BF16, (), (), False, complex_table, scattered
    )


def streams() -> Iterator[list[Tensor]]:
    yield from ([x] for x in heads())
    yield [meta(1, 200, 24, 128), meta(1, 142, 24, 128)]
    yield [meta(1, 200, 24, 128), with_symbol(64, 64, 24, 128)]
