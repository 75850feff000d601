"""Rules for attention.

torch's own kernels are the rival. On AMD they are AOTriton's, built into torch. aiter's were
published to be faster on some architectures; on the others a measurement decides.
"""

from __future__ import annotations

from rocm_passes.ops.attention_known import KERNELS, KNOWN_WRONG
from rocm_passes.policy.conditions import at_least, one_of
from rocm_passes.policy.rules import Evidence, Rule

LONG = 1024

RULES = [
    Rule(
        "attention",
        "aiter",
        "gfx950",
        {"queries": at_least(LONG), "keys": at_least(LONG)},
        True,
        "aiter's kernel takes less than half of AOTriton's time",
        Evidence(
            published="Lumen's README and aiter#2415, MI350X and MI355X",
            figures="Qwen-Image's attention 72.2 ms by AOTriton vs. 31.3 by aiter's Triton kernel "
            "(MI350X). aiter's hand-written kernel, which is called here: 613, 1177 and 1396 "
            "TFLOP/s at 1024, 4096 and 8192 tokens, torch's 118 (MI355X)",
        ),
    ),
    Rule(
        "attention",
        "aiter",
        "gfx950",
        {},
        False,
        "nothing is published for such short sequences: {unmet}",
        Evidence(figures="not measured"),
    ),
    Rule(
        "attention",
        "aiter",
        "gfx942",
        {},
        False,
        "published figures are of kernels that round otherwise; a measurement on this machine "
        "decides (tune_seconds)",
        Evidence(figures="not measured; rounding to nearest even costs some 9 % of aiter's rate"),
    ),
    *(
        Rule(
            "attention",
            "chunked",
            wrong.arch,
            {"head_size": wrong.head_size, "kernel": one_of(*KERNELS)},
            True,
            wrong.said,
            Evidence(published=wrong.report, figures=wrong.figures),
        )
        for wrong in KNOWN_WRONG
    ),
    Rule(
        "attention",
        "chunked",
        "amd",
        {"kernel": "math", "scores_fit": False},
        True,
        "the graph would hold all scores at once, which is more than ATTENTION_MIB",
        Evidence(
            published="Comfy-Org/ComfyUI#16160, ROCm/TheRock#1317",
            figures="out of memory at 84 GiB of scores",
        ),
    ),
    Rule(
        "attention",
        "chunked",
        "any",
        {"kernel": "math"},
        False,
        "Inductor's code for it is as exact, and its scores are not known to exceed ATTENTION_MIB",
        Evidence(figures="not measured"),
    ),
    Rule(
        "attention",
        "chunked",
        "any",
        {},
        False,
        "torch's kernel computes in 16 bits and in one launch",
        Evidence(figures="by construction: several launches and float32 products for each tile"),
    ),
    Rule(
        "attention",
        "sdpa",
        "gfx942",
        {"rocm": "7.0", "v_lies_unlike_k": True},
        True,
        "torch's kernels of ROCm 7.0 read such a v wrongly; it is copied first",
        Evidence(
            published="ROCm/pytorch#3230",
            figures="q and k contiguous, v a transposed view: an error of 2 to 3, none of a copy",
        ),
    ),
    Rule(
        "attention",
        "sdpa",
        "any",
        {},
        False,
        "it is what the graph has",
        Evidence(figures="by construction: the same operator again"),
    ),
]
