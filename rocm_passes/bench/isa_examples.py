"""Production shapes of the Triton kernels, ready to be compiled for an architecture that is not
here (isa.py).
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton

from rocm_passes.kernels.triton.activation import gated_activation_kernel as gated
from rocm_passes.kernels.triton.common import TRITON_TYPE
from rocm_passes.kernels.triton.convolution import frames, pad_launch
from rocm_passes.kernels.triton.convolution.pad_kernel import pad_kernel
from rocm_passes.kernels.triton.norms import channel_norm_launch, group_norm_launch, norm_plan
from rocm_passes.kernels.triton.norms.channel_norm_kernel import channel_norm_kernel
from rocm_passes.kernels.triton.norms.group_norm_kernel import (
    group_norm_apply_kernel,
    group_norm_combine_kernel,
    group_norm_partials_kernel,
)
from rocm_passes.kernels.triton.norms.group_norm_pad_kernel import group_norm_pad_kernel
from rocm_passes.kernels.triton.norms.norm_arguments import NormKind
from rocm_passes.kernels.triton.norms.norm_kernel import fused_norm_kernel
from rocm_passes.kernels.triton.rotary import rotary_tiles
from rocm_passes.kernels.triton.rotary.rotary_launch import rotary_heads_kernel


@dataclass(frozen=True)
class IsaExample:
    """One production shape of a kernel, ready to be compiled for an architecture that is not here.

    `signature` maps every argument to its Triton type ("*bf16", "i32", "i64", "constexpr");
    `constexprs` gives the values of the constexpr ones. Pointers and integers may be taken as
    divisible by 16. `num_warps` counts warps of 32 lanes; launches halve it where a warp has 64
    (`launch_warps`).
    """

    kernel: Any
    label: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int


def isa_example(
    kernel: Any,
    label: str,
    pointers: Mapping[str, str],
    constexprs: Mapping[str, Any],
    num_warps: int,
) -> IsaExample:
    """An `IsaExample` from the pointer types and the constexprs; every other argument is an i32."""
    signature = {
        name: "constexpr" if name in constexprs else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    return IsaExample(kernel, label, signature, dict(constexprs), num_warps)


def norm_examples() -> list[IsaExample]:
    """Production launches, for the ISA report: plain norms, per head, and the two fused chains."""
    return [
        _norm_example("rms_norm [32760, 5120] bf16", 5120, weight="*bf16"),
        _norm_example("rms_norm per head [138240, 128] bf16", 128, weight="*bf16"),
        _norm_example("rms_norm per head [236544, 64] bf16", 64, weight="*bf16"),
        _norm_example(
            "add + rms_norm [32760, 5120] bf16", 5120, branch=True, weight="*bf16", total=True
        ),
        _norm_example(
            "x + gate * branch; layer_norm; modulate [32760, 5120] bf16, fp32 tables",
            5120,
            kind="layer",
            branch=True,
            gate="*fp32",
            scale0="*fp32",
            shift0="*fp32",
            total=True,
        ),
        _norm_example(
            "x + gate * rms_norm(branch); rms_norm; scale [4608, 3840] bf16",
            3840,
            branch=True,
            branch_norm=True,
            gate="*bf16",
            bw="*bf16",
            weight="*bf16",
            scale0="*bf16",
            total=True,
        ),
        _norm_example("rms_norm [4096, 13824] bf16, read twice", 13824, weight="*bf16"),
    ]


def _norm_example(
    label: str,
    width: int,
    kind: NormKind = "rms",
    branch: bool = False,
    branch_norm: bool = False,
    total: bool = False,
    **tables: str,
) -> IsaExample:
    tile = norm_plan.choose_tile(
        width, branch, norm_plan.LEAST_LOOPED_ROWS if branch_norm and kind != "none" else 0
    )
    constexprs: dict[str, Any] = {
        "D": width,
        "CHUNK": tile.chunk,
        "CHUNKS": triton.cdiv(width, tile.chunk),
        "ROWS": tile.rows,
        "LOOP": tile.loop,
        "RESIDENT": tile.resident,
        "WIDE_ROWS": False,
        "KIND": kind,
        "EPS": 1e-6,
        "EPS_KIND": "add",
        "BRANCH": branch,
        "BRANCH_NORM": branch_norm,
        "BRANCH_EPS": 1e-6,
        "BW_OFFSET": 0.0,
        "OUTPUTS": 1,
        "STORE_SUM": total,
        "ROUND_SUM": total,
        "SUM_TYPE": TRITON_TYPE[torch.bfloat16],
        "ROUND_NORM": False,
        "NORM_TYPE": TRITON_TYPE[torch.bfloat16],
        "WEIGHT_OFFSET": 0.0,
        "SCALE_OFFSET": 1.0,
        "n1": 1,
        "n2": 1,
    }
    pointers = {name: "*bf16" for name in fused_norm_kernel.arg_names if name.endswith("_ptr")}
    for name in norm_plan.TABLES:
        constexprs[f"{name.upper()}_MODE"] = int(name in tables)
        constexprs[f"{name}_col"] = 1  # as a launch specialises it
        pointers[f"{name}_ptr"] = tables.get(name, "*bf16")
    return isa_example(fused_norm_kernel, label, pointers, constexprs, tile.num_warps)


def channel_norm_examples() -> list[IsaExample]:
    """Production launches: Wan's VAE decoder at its narrowest and widest, in both layouts."""
    examples = []
    for channels in (96, 192, 384):
        for channels_last in (False, True):
            for dtype in ("bf16", "fp32"):
                tile = channel_norm_launch.choose_tile(channels, channels_last)
                layout = "channels-last" if channels_last else "contiguous"
                inner = "channel_stride" if channels_last else "pixel_stride"
                unit = (inner, f"out_{inner}")
                examples.append(
                    isa_example(
                        channel_norm_kernel,
                        f"channel norm + SiLU, C {channels}, {layout}, {dtype}",
                        dict.fromkeys(
                            ("x_ptr", "x_bias_ptr", "gamma_ptr", "bias_ptr", "out_ptr"), f"*{dtype}"
                        ),
                        {
                            "C": channels,
                            "CHUNK": tile.chunk,
                            "CHUNKS": triton.cdiv(channels, tile.chunk),
                            "PIXELS": tile.pixels,
                            "RESIDENT": tile.resident,
                            "FORM": "l2",
                            "EPS": 1e-12,
                            "SCALE": channels**0.5,
                            "HAS_GAMMA": True,
                            "HAS_BIAS": False,
                            "HAS_X_BIAS": True,
                            "ROUND_NORM": True,
                            "SILU": True,
                            "WIDE": False,
                            # A launch specialises an integer argument of 1.
                            **dict.fromkeys(unit, 1),
                        },
                        tile.num_warps,
                    )
                )
    return examples


def group_norm_examples() -> list[IsaExample]:
    """The three kernels on a VAE's last block, 128 x 1024 x 1024 in 32 groups, in both layouts."""
    channels, groups, pixels = 128, 32, 1024 * 1024
    examples = []
    for channels_last in (False, True):
        tile = group_norm_launch.choose_tile(1, channels, pixels, channels_last)
        layout = "channels-last" if channels_last else "contiguous"
        unit = {("channel_stride" if channels_last else "pixel_stride"): 1}
        out_unit = {f"out_{name}": 1 for name in unit}
        shape = {
            "C": channels,
            "CHANNELS": tile.channels,
            "PIXELS": tile.pixels,
            "WIDE": False,
            "HAS_X_BIAS": True,
        } | unit
        flags = dict.fromkeys(("HAS_MULTIPLIER", "HAS_ADDEND", "HAS_PIXEL_INDEX"), False)
        flags |= dict.fromkeys(("HAS_WEIGHT", "HAS_BIAS", "SILU"), True)
        pointers = {
            name: "*bf16" for name in group_norm_apply_kernel.arg_names if name.endswith("_ptr")
        }
        pointers |= dict.fromkeys(("shift_ptr", "drift_ptr", "rstd_ptr"), "*fp32")
        by_index = dict.fromkeys(("HAS_MULTIPLIER", "HAS_ADDEND", "HAS_PIXEL_INDEX"), True)
        examples += [
            isa_example(
                group_norm_partials_kernel,
                f"group norm partials, C 128, {layout}, bf16",
                {"x_ptr": "*bf16", "x_bias_ptr": "*bf16"}
                | dict.fromkeys(("shift_ptr", "drift_ptr", "spread_ptr"), "*fp32"),
                shape,
                tile.num_warps,
            ),
            isa_example(
                group_norm_apply_kernel,
                f"group norm + SiLU, C 128, {layout}, bf16",
                pointers,
                shape | flags | out_unit | {"GROUPS": groups},
                tile.num_warps,
            ),
            isa_example(
                group_norm_apply_kernel,
                f"group norm * y + b + SiLU, by index, C 128, {layout}, bf16",
                pointers | {"pixel_index_ptr": "*i32"},
                shape | flags | by_index | out_unit | {"GROUPS": groups, "given_channel_stride": 1},
                tile.num_warps,
            ),
        ]
    pointers = {
        name: "*fp32" for name in group_norm_combine_kernel.arg_names if name.endswith("_ptr")
    }
    constexprs = {
        "C": channels,
        "GROUPS": groups,
        "EPS": 1e-6,
        "BLOCK": group_norm_launch.COMBINE_BLOCK,
    }
    examples.append(
        isa_example(group_norm_combine_kernel, "group norm combine", pointers, constexprs, 4)
    )
    return examples


def group_norm_pad_examples() -> list[IsaExample]:
    """HunyuanVideo's last block, 128 channels in 32 groups, padded in time before and in space all
    round.
    """
    tile = pad_launch.choose_tile(128, 19 * 258 * 258, 2, True, True)
    constexprs = {
        "C": 128,
        "GROUPS": 32,
        "CHANNELS": tile.channels,
        "PIXELS": tile.pixels,
        "MODE": "replicate",
        **dict.fromkeys(
            ("HAS_X_BIAS", "HAS_WEIGHT", "HAS_BIAS", "SILU", "READ_LAST", "WRITE_LAST"), True
        ),
        "WIDE": False,
        "channel_stride": 1,
    }
    pointers = {name: "*bf16" for name in group_norm_pad_kernel.arg_names if name.endswith("_ptr")}
    pointers |= dict.fromkeys(("shift_ptr", "drift_ptr", "rstd_ptr"), "*fp32")
    label = "group norm + SiLU + pad, C 128, channels-last, bf16"
    return [isa_example(group_norm_pad_kernel, label, pointers, constexprs, tile.num_warps)]


def pad_examples() -> list[IsaExample]:
    """HunyuanVideo's padding in its last block (C 128), and behind its upsampler, which writes what
    it reads along the other dim.
    """
    examples = []
    for channels, repeats, read_last in ((128, 1, True), (256, 2, True), (256, 2, False)):
        tile = pad_launch.choose_tile(channels, 19 * 258 * 258, 2, read_last, True)
        label = f"pad, C {channels}" + (", upsampled" if repeats > 1 else "")
        unit = {"channel_stride" if read_last else "column_stride": 1}
        shape = {
            "C": channels,
            "CHANNELS": tile.channels,
            "PIXELS": tile.pixels,
            "REPEAT_T": repeats,
            "REPEAT_H": repeats,
            "REPEAT_W": repeats,
            "MODE": "replicate",
            "READ_LAST": read_last,
            "WRITE_LAST": True,
            "WIDE": False,
        }
        examples.append(
            isa_example(
                pad_kernel,
                f"{label}, {'channels-last' if read_last else 'contiguous to channels-last'}, bf16",
                {"x_ptr": "*bf16", "out_ptr": "*bf16"},
                shape | unit,
                tile.num_warps,
            )
        )
    return examples


def frame_examples() -> list[IsaExample]:
    """Two frames of CogVideoX's last block, into a channels-last video and out of one."""
    examples = []
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        for read_last in (False, True):
            tile = frames.choose_tile(128, itemsize, channels_innermost=True)
            unit = (
                {"channel_stride": 1, "out_pixel_stride": 1}
                if read_last
                else {"pixel_stride": 1, "out_channel_stride": 1}
            )
            shape = {
                "C": 128,
                "CHANNELS": tile.channels,
                "PIXELS": tile.pixels,
                "READ_LAST": read_last,
                "WRITE_LAST": not read_last,
                "WIDE": False,
            }
            examples.append(
                isa_example(
                    frames.copy_frames_kernel,
                    f"frames turned, C 128, {'from' if read_last else 'into'} channels-last, "
                    f"{dtype}",
                    {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"},
                    shape | unit,
                    tile.num_warps,
                )
            )
    return examples


def rotary_examples() -> list[IsaExample]:
    """FLUX's rotation, a half-split one with bf16 tables, and the norms with rotation of Z-Image
    and Wan.
    """
    return [
        _rotary_example("FLUX.1 RoPE q,k [1,4608,24,128]", 24, PER_CHANNEL=True),
        _rotary_example(
            "half-split RoPE q,k [1,4608,30,128]", 30, "*bf16", PER_CHANNEL=True, INTERLEAVED=False
        ),
        _rotary_example(
            "Z-Image norm + RoPE q,k [1,4608,30,128]", 30, NORM=True, ROUND_BEFORE_WEIGHT=True
        ),
        _rotary_example("Wan norm + RoPE q,k [1,32760,40,128]", 40, NORM=True, ACROSS_HEADS=True),
        # Of one tensor, where q and k are two sites: with context parallelism.
        _rotary_example(
            "Wan norm + RoPE q [1,16380,40,128]", 40, K_HEADS=0, NORM=True, ACROSS_HEADS=True
        ),
    ]


def _rotary_example(
    label: str, heads: int, table: str = "*fp32", **flags: bool | int
) -> IsaExample:
    norm = flags.get("NORM", False)
    tokens, head_tile, warps = rotary_tiles.tile_shape(
        (heads,), 128, bool(norm), bool(flags.get("ACROSS_HEADS"))
    )
    constexprs = {
        "Q_HEADS": heads, "K_HEADS": heads, "D": 128, "R": 128, "P": 64, "REST_P": 0,
        "T": tokens, "H": head_tile, "table_stride_f": 1,
        "INTERLEAVED": True, "CONJUGATE": False, "PER_CHANNEL": False, "PER_HEAD": False,
        "PARTIAL": False,
        "NORM": False, "ACROSS_HEADS": False, "Q_EPS": 1e-5, "K_EPS": 1e-5,
        "HAS_Q_WEIGHT": norm, "HAS_K_WEIGHT": norm, "ROUND_BEFORE_WEIGHT": False,
        "ROUND_AFTER": norm,
    }  # fmt: skip
    pointers = {n: "*bf16" for n in rotary_heads_kernel.arg_names if n.endswith("_ptr")}
    pointers |= {"cos_ptr": table, "sin_ptr": table}
    return isa_example(rotary_heads_kernel, label, pointers, constexprs | flags, warps)


def activation_examples() -> list[IsaExample]:
    """The products of Z-Image's and FLUX.2's SwiGLU, and of SDXL's GEGLU."""
    pointers = dict.fromkeys(("gate", "x", "y"), "*bf16")
    shapes = (
        ("SwiGLU [4608, 10240] bf16", "silu"),
        ("GEGLU [4096, 5120] bf16", "gelu"),
        ("tanh GEGLU [4096, 5120] bf16", "gelu_tanh"),
    )
    return [
        isa_example(
            gated.gated_activation_kernel,
            label,
            pointers,
            {"ACT": act, "BLOCK": gated.BLOCK},
            gated.WARPS,
        )
        for label, act in shapes
    ]


def examples() -> Iterator[IsaExample]:
    """The production shapes of every kernel."""
    yield from norm_examples()
    yield from channel_norm_examples()
    yield from group_norm_examples()
    yield from group_norm_pad_examples()
    yield from pad_examples()
    yield from frame_examples()
    yield from rotary_examples()
    yield from activation_examples()
