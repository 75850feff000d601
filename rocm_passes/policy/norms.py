"""Rules for the norms."""

from __future__ import annotations

from rocm_passes.policy.conditions import at_least, one_of
from rocm_passes.policy.rules import Evidence, Rule

SITES = "python -m rocm_passes.bench.norm_sites"
BLOCKS = "python -m rocm_passes.bench.blocks"
NORMS = "python -m rocm_passes.bench.norms"
PADS = "python -m rocm_passes.bench.pads"
VAE = "python -m rocm_passes.bench.vae"

PERFORMANCE, TUNING = "docs/performance.md", "docs/tuning.md"

NO_KERNEL = Evidence(figures="not measured: the kernels run on a CPU in Triton's interpreter only")
NOT_MEASURED = Evidence(figures="not measured")
ON_A_CPU = "on a CPU Inductor's own code is faster"
TOO_SMALL = "not measured to pay for such a call: {unmet}"

#: AMD's own library, by those who published times of it.
AITER_RMS = Evidence(
    published="sgl-project/sglang#24360, on MI300-class GPUs",
    figures="291.4 vs. 430.6 us at full width",
)
AITER_RMS_SMALL = Evidence(
    published="NVIDIA/TensorRT-LLM#11798",
    figures="at head size 128 Inductor was faster",
)
AITER_WIDTH = {"columns": at_least(1024)}


def aiter_rms_norm(operator: str) -> list[Rule]:
    faster = "aiter's RMSNorm was faster than Inductor's code"
    slower = "at a small hidden size Inductor was faster"
    return [
        Rule(operator, "aiter", "amd", AITER_WIDTH, True, faster, AITER_RMS),
        Rule(operator, "aiter", "amd", {}, False, slower, AITER_RMS_SMALL),
    ]


RMS_NORM = [
    *aiter_rms_norm("rms_norm"),
    Rule(
        "rms_norm",
        "triton",
        "any",
        {},
        False,
        "Inductor fuses a plain RMSNorm with its neighbours at least as fast",
        Evidence(
            "H200",
            figures="between two matrix products 0.448 vs. 0.459 ms at [32760, 5120], "
            "0.0500 vs. 0.0515 at [4608, 3072]; Inductor is within 1.15x of the memory floor",
            docs=PERFORMANCE,
        ),
        SITES,
    ),
]

LAYER_NORM = [
    Rule(
        "layer_norm",
        "aiter",
        "any",
        {},
        False,
        "no times of aiter's LayerNorm against Inductor are published",
        NOT_MEASURED,
    ),
    Rule("layer_norm", "triton", "cpu", {}, False, ON_A_CPU, NO_KERNEL),
    Rule(
        "layer_norm",
        "triton",
        "gpu",
        {"columns": at_least(1024), "elements": at_least(2**22)},
        True,
        "one pass over memory vs. Inductor's two",
        Evidence(
            "H200",
            figures="between two matrix products, with weight and bias: 0.0520 vs. 0.0778 ms at "
            "[4608, 3072], 0.445 vs. 0.584 at [32760, 5120]",
            docs=PERFORMANCE,
        ),
        SITES,
    ),
    Rule("layer_norm", "triton", "gpu", {}, False, TOO_SMALL, NOT_MEASURED),
]

#: A chain pays from fewer elements than a LayerNorm alone: blocks of 512 x 3072 were measured.
CHAIN_SIZE = {"columns": at_least(1024), "elements": at_least(2**20)}

FUSED_NORM = [
    Rule(
        "fused_norm",
        "aiter",
        "any",
        {"kind": "layer"},
        False,
        "no times of aiter's LayerNorm against Inductor are published",
        NOT_MEASURED,
    ),
    *aiter_rms_norm("fused_norm"),
    Rule("fused_norm", "triton", "cpu", {}, False, ON_A_CPU, NO_KERNEL),
    Rule(
        "fused_norm",
        "triton",
        "gpu",
        {**CHAIN_SIZE, "kind": "layer", "chained": True},
        True,
        "one pass over memory vs. Inductor's two or more",
        Evidence(
            "H200",
            figures="in blocks from [512, 3072] on (text streams of FLUX and Qwen-Image); "
            "Qwen-Image's four chains 48 vs. 75 us of the device",
            docs=PERFORMANCE,
        ),
        BLOCKS,
    ),
    Rule(
        "fused_norm",
        "triton",
        "gpu",
        {
            **CHAIN_SIZE,
            "kind": one_of("rms", "none"),
            "branch_norm": True,
            "rows": at_least(3072),
        },
        True,
        "one pass over memory vs. Inductor's two or more",
        Evidence(
            "H200",
            figures="at 2304 and 3840 columns 0.73 to 1.00 of Inductor's time from 3072 rows on; "
            "Z-Image's chains 64 vs. 90 us of the device",
            docs=PERFORMANCE,
        ),
        NORMS,
    ),
    Rule(
        "fused_norm",
        "triton",
        "gpu",
        {"kind": one_of("rms", "none"), "branch_norm": True},
        False,
        "with a norm of the branch Inductor's own code was about as fast or faster: {unmet}",
        Evidence(
            "H200",
            figures="below 3072 rows 0.78 to 1.20 of Inductor's time at 2304 and 3840 columns",
            docs=PERFORMANCE,
        ),
        NORMS,
    ),
    Rule("fused_norm", "triton", "gpu", {"kind": "layer"}, False, TOO_SMALL, NOT_MEASURED),
    Rule(
        "fused_norm",
        "triton",
        "gpu",
        {},
        False,
        "with an RMSNorm Inductor's own code was as fast or faster",
        Evidence(
            "H200",
            figures="in LTX-Video's block; add + RMSNorm 0.603 vs. 0.607 ms at [32760, 5120], "
            "0.0413 vs. 0.0304 at [512, 4096]",
            docs=PERFORMANCE,
        ),
        SITES,
    ),
]

GROUP_NORM_SITES = Evidence(
    "H200",
    figures="between two convolutions, of Inductor's time: 512 x 128 x 128 0.76 contiguous, "
    "0.87 channels-last; 128 x 1024 x 1024 0.58 and 0.60",
    docs=PERFORMANCE,
)

GROUP_NORM = [
    Rule("group_norm", "triton", "cpu", {}, False, ON_A_CPU, NO_KERNEL),
    Rule(
        "group_norm",
        "triton",
        "gpu",
        {"elements": at_least(2**22)},
        True,
        "fewer passes over memory than Inductor's code",
        GROUP_NORM_SITES,
        SITES,
    ),
    Rule("group_norm", "triton", "gpu", {}, False, TOO_SMALL, NOT_MEASURED),
    Rule(
        "group_norm",
        "aiter",
        "any",
        {"dtype": "float32"},
        False,
        "aiter's variance cancels in fp32 where the mean outweighs the spread",
        Evidence(figures="not measured; read in aiter's source"),
    ),
    Rule(
        "group_norm",
        "aiter",
        "any",
        {},
        False,
        "it was compared with eager torch only",
        Evidence(
            published="sgl-project/sglang#20170", figures="12x against eager torch on an MI300X"
        ),
    ),
]

CONTIGUOUS = "the convolution's input is contiguous: Inductor's copy keeps the memory order"

GROUP_NORM_PAD = [
    Rule("group_norm_pad", "triton", "cpu", {}, False, ON_A_CPU, NO_KERNEL),
    Rule(
        "group_norm_pad",
        "triton",
        "gpu",
        {"channels_last": True, "elements": at_least(2**22), "padded_elements": at_least(2**22)},
        True,
        "GroupNorm writes the padded tensor itself: one pass over memory less",
        Evidence(
            "H200",
            figures="beside HunyuanVideo's convolutions 0.67 vs. 1.20 ms at C 128, 17 x 256 x 256 "
            "(0.77 for GroupNorm and a copy), 0.082 vs. 0.088 at C 512, 5 x 64 x 64",
            docs=TUNING,
        ),
        PADS,
    ),
    Rule(
        "group_norm_pad",
        "triton",
        "gpu",
        {"channels_last": False},
        False,
        CONTIGUOUS,
        NOT_MEASURED,
    ),
    Rule("group_norm_pad", "triton", "gpu", {}, False, TOO_SMALL, NOT_MEASURED),
]

CHANNEL_NORM = [
    Rule("channel_norm", "triton", "cpu", {}, False, ON_A_CPU, NO_KERNEL),
    Rule(
        "channel_norm",
        "triton",
        "gpu",
        {"joins": True, "elements": at_least(2**22)},
        True,
        "written where it is read, which spares the copy of a video",
        Evidence("H200", figures="Wan's decode 144.5 vs. 151.0 ms", docs=PERFORMANCE),
        VAE,
    ),
    Rule(
        "channel_norm",
        "triton",
        "gpu",
        {"joins": False},
        False,
        "in whole decodes Inductor's fused code was no slower",
        Evidence(
            "H200",
            figures="Wan's decode 167.6 with the kernel vs. 146.5 ms; alone the kernel is faster",
            docs=PERFORMANCE,
        ),
        VAE,
    ),
    Rule("channel_norm", "triton", "gpu", {}, False, TOO_SMALL, NOT_MEASURED),
]

RULES = [*RMS_NORM, *LAYER_NORM, *FUSED_NORM, *GROUP_NORM, *GROUP_NORM_PAD, *CHANNEL_NORM]
