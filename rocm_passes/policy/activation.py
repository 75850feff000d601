"""Rules for activations. Inductor's fused code is the rival, and only a measurement beats it."""

from __future__ import annotations

from rocm_passes.policy.rules import Evidence, Rule

RULES = [
    Rule(
        "gated_activation",
        "triton",
        "gpu",
        {},
        False,
        "Inductor fuses the product as well, with what stands around it",
        Evidence(figures="not measured"),
    ),
    Rule(
        "linear_gelu",
        "epilogue",
        "any",
        {},
        False,
        "it pays by measurement only (tune_seconds)",
        Evidence(
            published="sgl-project/sglang#33536",
            figures="the kernel 1.18 to 1.24x, Qwen-Image's denoising 12.36 vs. 12.05 s; reverted "
            "once because images changed",
        ),
    ),
    Rule(
        "linear_gelu",
        "addmm",
        "any",
        {},
        False,
        "it is what the graph has",
        Evidence(figures="by construction: the same operators again"),
    ),
]
