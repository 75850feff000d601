"""Rules for padding in front of a convolution."""

from __future__ import annotations

from rocm_passes.policy.conditions import at_least
from rocm_passes.policy.rules import Evidence, Rule

PADS = "python -m rocm_passes.bench.pads"
TUNING = "docs/tuning.md"

EXACT = Evidence(figures="by construction: a copy less")
NOT_MEASURED = Evidence(figures="not measured")
NO_KERNEL = Evidence(figures="not measured: the kernels run on a CPU in Triton's interpreter only")

RULES = [
    Rule("pad", "drop", "any", {}, True, "it pads by nothing: a copy that is left out", EXACT),
    Rule(
        "pad",
        "triton",
        "cpu",
        {},
        False,
        "on a CPU Inductor fuses the padding with what makes its input",
        NO_KERNEL,
    ),
    Rule(
        "pad",
        "triton",
        "gpu",
        {"channels_last": True, "upsamples": True, "padded_elements": at_least(2**22)},
        True,
        "one pass, where Inductor crosses memory in the wrong order",
        Evidence(
            "H200",
            figures="HunyuanVideo's upsamplers 0.59 vs. 2.55 ms (C 256, 9 x 128 x 128), "
            "0.18 vs. 0.67 (C 512, 5 x 64 x 64)",
            docs=TUNING,
        ),
        PADS,
    ),
    Rule(
        "pad",
        "triton",
        "gpu",
        {"channels_last": False},
        False,
        "the convolution's input is contiguous: Inductor's copy keeps the memory order",
        NOT_MEASURED,
    ),
    Rule(
        "pad",
        "triton",
        "gpu",
        {"upsamples": False},
        False,
        "without upsampling Inductor's copy is as fast, and may be fused",
        Evidence("H200", docs=TUNING),
        PADS,
    ),
    Rule(
        "pad",
        "triton",
        "gpu",
        {},
        False,
        "small padding is left to Inductor to fuse, which was not measured: {unmet}",
        NOT_MEASURED,
    ),
]
