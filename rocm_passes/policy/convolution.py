"""Rules for convolutions, where no measurement of the call is known."""

from __future__ import annotations

from rocm_passes.policy.bounds import LEAST_REPETITION
from rocm_passes.policy.conditions import at_least, both, not_a_multiple_of
from rocm_passes.policy.rules import Evidence, Rule

CONV3D_CHOICES = "python -m rocm_passes.bench.conv3d --all"
CONV3D_WAYS = "python -m rocm_passes.bench.conv3d"

CONV_KERNEL = "python -m rocm_passes.bench.conv_kernel"

TUNING, CALLS = "docs/tuning.md", "docs/conv3d.md"

EXACT = Evidence(figures="by construction: exact algebra with less work")
NOT_MEASURED = Evidence(figures="not measured")
DROPPED = "{live_taps} of {taps} temporal taps see frames that are not zero; the others are dropped"
ONE_LEFT = "one of {taps} temporal taps sees frames that are not zero; the others are dropped"
CHANNELS_LAST = "channels-last through the whole graph, without conversions between neighbours"
DECODES = Evidence(
    "H200",
    figures="conv3d and its padding 0.42 vs. 0.63 ms (192-384, 2+2 frames), "
    "3.28 vs. 4.17 (96-96, 2+4 frames)",
    docs=TUNING,
)
UNFOLDED = Evidence(published="sglang#22971", figures="faster than MIOpen's conv3d")
BY_LAYOUT = Evidence(figures="by construction: it is found where the rule of memory_format says so")
ASKED_FOR = Evidence(figures="by construction: the user chose the dtype")
#: Taken where a measurement of the call says so, or where it is forced.
MEASURED_ONLY = (Evidence("H200", figures="by call", docs=CALLS), CONV3D_CHOICES)
TILES = "tiles bound the peak memory"

FLYDSL = Evidence(
    published="ROCm/aiter#5370 and AMD's Lumen on an MI350X",
    figures="Wan 2.1 VAE encode 427.5 -> 314.5 ms (293.5 with tuned tiles), Qwen-Image 36.5 -> "
    "19.5 ms, vs. MIOpen",
    docs="docs/aiter.md",
)
AITER_TRITON = Evidence(
    published="ROCm/aiter#5640",
    figures="conv3d 1.67 to 4.32 times MIOpen on gfx1201, mostly by Winograd, which is not called "
    "here",
    docs="docs/aiter.md",
)
BY_CALL = "it is taken where a measurement of the call says so"

AITER_CONV3D = [
    Rule(
        "conv3d",
        "aiter_flydsl",
        "gfx950",
        {"channels_last": True, "dtype": "bfloat16", "conv_dtype_given": False, "groups": 1},
        True,
        "aiter's FlyDSL convolution was faster than MIOpen over whole encodes",
        FLYDSL,
    ),
    Rule("conv3d", "aiter_flydsl", "any", {}, False, BY_CALL, FLYDSL),
    Rule("conv3d", "aiter_triton", "any", {}, False, BY_CALL, AITER_TRITON),
]

CONV3D = [
    Rule(
        "conv3d",
        "matmul",
        "gpu",
        {},
        True,
        "kernel = stride: a matrix product, without the library's convolution",
        Evidence(
            "H200",
            figures="a patch embedding took at most a third of the time of any other lowering",
            docs=CALLS,
        ),
        CONV3D_CHOICES,
    ),
    Rule(
        "conv3d",
        "matmul",
        "cpu",
        {},
        False,
        "on a CPU the library's convolution is kept: the matrix product was not measured there",
        NOT_MEASURED,
    ),
    Rule("conv3d", "conv2d", "any", {"taps": at_least(2)}, True, ONE_LEFT, EXACT),
    Rule(
        "conv3d",
        "conv2d",
        "gpu",
        {},
        True,
        "kT=1: it is a conv2d on frames, for which libraries have more and faster kernels",
        Evidence(
            "H200",
            figures="0.0113 vs. 0.0123 ms (16-16 1x1x1, 21 frames of 90x160), others as fast",
            docs=CALLS,
        ),
        CONV3D_CHOICES,
    ),
    Rule(
        "conv3d",
        "conv2d",
        "any",
        {},
        False,
        "kT=1: on a CPU conv3d is kept, since conv2d was not measured there",
        NOT_MEASURED,
    ),
    Rule(
        "conv3d",
        "taps",
        "any",
        {"live_taps": at_least(2), "dropped_taps": at_least(1)},
        True,
        DROPPED,
        EXACT,
    ),
    Rule(
        "conv3d",
        "taps",
        "amd",
        {},
        True,
        "the sum over taps was faster than MIOpen's conv3d",
        Evidence(
            published="SeedVR2#634",
            figures="faster than MIOpen's conv3d and than the unfolded copy",
        ),
    ),
    Rule(
        "conv3d",
        "taps",
        "nvidia",
        {
            "channels_last": True,
            "spatial_kernel": at_least(2),
            "dtype": "float32",
            "out_channels": at_least(64),
            "in_channels": at_least(64),
        },
        True,
        "in float32 taps take 0.6 of the time of cuDNN's conv3d",
        Evidence(
            "H200",
            figures="3.71 vs. 6.37 ms (96-96, 2+4 frames), 1.32 vs. 2.14 (384-384, 2+2 frames)",
            docs=TUNING,
        ),
        CONV3D_WAYS,
    ),
    Rule(
        "conv3d",
        "taps",
        "nvidia",
        {},
        False,
        "cuDNN's conv3d was faster",
        Evidence(
            "H200",
            figures="1.47 vs. 1.52 ms (192-192, 2+4 frames), 0.42 vs. 0.62 (192-384, 2+2 frames)",
            docs=TUNING,
        ),
        CONV3D_WAYS,
    ),
    Rule(
        "conv3d",
        "taps",
        "any",
        {},
        False,
        "on a CPU the library's conv3d is kept: the sum over taps was not measured there",
        NOT_MEASURED,
    ),
    Rule(
        "conv3d",
        "taps_tiled",
        "any",
        {},
        False,
        f"one call per tap is faster; {TILES}",
        *MEASURED_ONLY,
    ),
    Rule(
        "conv3d",
        "triton",
        "sm_90",
        {
            "channels_last": True,
            "spatial_kernel": at_least(2),
            "out_channels": at_least(64),
            "in_channels": both(at_least(64), not_a_multiple_of(64)),
        },
        True,
        "cuDNN's conv3d is slow at channels not a multiple of 64",
        Evidence(
            "H100",
            figures="4.31 vs. 8.44 ms (96-96, 2+4 frames, 720p), 1.86 vs. 3.65 (480p)",
            docs=TUNING,
        ),
        CONV_KERNEL,
    ),
    Rule(
        "conv3d",
        "triton",
        "any",
        {},
        False,
        BY_CALL,
        Evidence("H100", figures="by call", docs=TUNING),
        CONV_KERNEL,
    ),
    Rule("conv3d", "triton_narrow", "any", {}, False, BY_CALL, NOT_MEASURED, CONV_KERNEL),
    Rule(
        "conv3d",
        "direct",
        "amd",
        {"taps": at_least(2), "unfolded_fits": True},
        False,
        "one conv2d over the unfolded frames was faster than MIOpen's conv3d",
        UNFOLDED,
    ),
    Rule(
        "conv3d",
        "direct",
        "any",
        {"channels_last": True},
        True,
        CHANNELS_LAST,
        DECODES,
        CONV3D_WAYS,
    ),
    Rule(
        "conv3d",
        "direct",
        "any",
        {"absorbs_padding": True},
        True,
        "the padding in front of it becomes the convolution's own, without a copy",
        EXACT,
    ),
    Rule(
        "conv3d",
        "direct",
        "any",
        {"conv_dtype_given": True},
        True,
        "conv_dtype was asked for",
        ASKED_FOR,
    ),
    Rule("conv3d", "direct", "any", {}, False, "it is what the graph has", EXACT),
    Rule(
        "conv3d",
        "unfold",
        "amd",
        {"unfolded_fits": True},
        True,
        "one conv2d over the unfolded frames was faster than MIOpen's conv3d",
        UNFOLDED,
    ),
    Rule(
        "conv3d",
        "unfold",
        "amd",
        {},
        False,
        "the unfolded copy does not keep to the memory bound, or its size is symbolic",
        UNFOLDED,
    ),
    Rule(
        "conv3d",
        "unfold",
        "any",
        {},
        False,
        "the library's conv3d does the same work without the unfolded copy",
        *MEASURED_ONLY,
    ),
    Rule("conv3d", "tiled", "any", {}, False, f"one call is faster; {TILES}", *MEASURED_ONLY),
]

CONV2D = [
    Rule("conv2d", "aiter_flydsl", "any", {}, False, BY_CALL, NOT_MEASURED),
    Rule("conv2d", "aiter_triton", "any", {}, False, BY_CALL, NOT_MEASURED),
    Rule("conv2d", "aiter_winograd", "any", {}, False, BY_CALL, NOT_MEASURED),
    Rule("conv2d", "channels_last", "any", {}, True, CHANNELS_LAST, BY_LAYOUT),
    Rule(
        "conv2d",
        "triton",
        "any",
        {},
        False,
        BY_CALL,
        Evidence("H100", figures="by call", docs=TUNING),
        CONV_KERNEL,
    ),
    Rule("conv2d", "direct", "any", {}, False, "it is what the graph has", EXACT),
]

ONE_PRODUCT = Evidence(
    figures="by construction: it reads the input once and writes the result once, as any way must"
)

CONV_TRANSPOSED = [
    Rule(
        "conv_transposed",
        "product",
        "gpu",
        {},
        True,
        "kernel = stride, depthwise: one product for each output, which Inductor fuses",
        ONE_PRODUCT,
    ),
    Rule(
        "conv_transposed",
        "product",
        "any",
        {},
        False,
        "on a CPU the library's convolution is kept: the products were not measured there",
        NOT_MEASURED,
    ),
    Rule("conv_transposed", "matmul", "any", {}, False, BY_CALL, NOT_MEASURED),
    Rule("conv_transposed", "direct", "any", {}, False, "it is what the graph has", EXACT),
]

REPEATED = {"repetition": at_least(LEAST_REPETITION.value)}

UPSAMPLED_CONV = [
    Rule(
        "upsampled_conv",
        "before_upsampling",
        "any",
        REPEATED,
        True,
        "computed once for each pixel of the source, not for its {repetition:.3g} copies",
        EXACT,
    ),
    Rule(
        "upsampled_conv",
        "before_upsampling",
        "any",
        {},
        False,
        "the input has only {repetition:.3g} times the pixels that it is made of",
        NOT_MEASURED,
    ),
]

RULES = [*AITER_CONV3D, *CONV3D, *CONV2D, *CONV_TRANSPOSED, *UPSAMPLED_CONV]
