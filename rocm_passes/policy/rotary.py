"""Rules for rotary embeddings.

A launch by Inductor's code costs the host little. An opaque call (aiter, symbolic sizes) costs it
more than the device saves in a small rotation. A CUDA graph costs it nothing.
"""

from __future__ import annotations

from typing import Any

from rocm_passes.policy.conditions import at_least
from rocm_passes.policy.rules import Evidence, Rule

KERNELS = "python -m rocm_passes.bench.rotary"
BLOCKS = "python -m rocm_passes.bench.blocks"
PERFORMANCE = "docs/performance.md"

NO_KERNEL = Evidence(figures="not measured: the kernels run on a CPU in Triton's interpreter only")
ON_A_CPU = "on a CPU there is no kernel"

#: When the host keeps up with the device: each of these suffices.
REPLAYED = {"cuda_graphs": True}
LAUNCHED = {"static_sizes": True, "channels": at_least(2**20)}
CALLED = {"channels": at_least(16_000_000)}
#: By lowering: Inductor launches the Triton kernel itself, and calls aiter.
KEEPS_UP: dict[str, tuple[dict[str, Any], ...]] = {
    "triton": (REPLAYED, LAUNCHED, CALLED),
    "aiter": (REPLAYED, CALLED),
}
WHERE = {"triton": "gpu", "aiter": "amd"}

SMALL = (
    "at {channels} channels the call costs the host more than the device saves; "
    "mode='reduce-overhead' avoids that"
)
SMALL_EVIDENCE = Evidence(
    "H200",
    figures="launched by Inductor: in blocks of 2 to 8 ms every rotation from 1.5M channels of q "
    "on "
    "took less of the device, and no more of the host. Opaque calls: blocks with 14M (Qwen-Image, "
    "FLUX.1) were slower, with 18M (Z-Image) as fast, with more faster",
    docs=PERFORMANCE,
)

COMPLEX = "Inductor generates no code for complex numbers: 5.6x of one read and one write vs. 1.1x"
COMPLEX_EVIDENCE = Evidence(
    "H200", figures="Z-Image's q and k, 4608 tokens: 37.6 vs. 190 us", docs=PERFORMANCE
)
SCATTERED = "Inductor takes 1.5x of one read and one write for slice assignment vs. 1.0x"
SCATTERED_EVIDENCE = Evidence(
    "H200", figures="Wan's q and k, 32760 tokens: 327 vs. 473 us", docs=PERFORMANCE
)
REAL = "Inductor fuses a rotation in real numbers nearly as well"
REAL_EVIDENCE = Evidence(
    "H200",
    figures="q and k, 4608 tokens: 38.3 vs. 39.9 us (half-split), 31.1 vs. 34.6 (FLUX)",
    docs=PERFORMANCE,
)


def rotations(operator: str, lowering: str) -> list[Rule]:
    """The rules of a kernel that rotates one tensor or two: by spelling, then by size."""
    where = WHERE[lowering]
    spellings = (
        ("complex", COMPLEX, COMPLEX_EVIDENCE),
        ("slice assignment", SCATTERED, SCATTERED_EVIDENCE),
    )
    return [
        Rule(operator, lowering, "cpu", {}, False, ON_A_CPU, NO_KERNEL),
        *(
            Rule(
                operator,
                lowering,
                where,
                {"spelling": spelling, **enough},
                True,
                why,
                evidence,
                KERNELS,
                # Complex numbers cost Inductor five times the kernel's time.
                beyond_doubt=spelling == "complex",
            )
            for spelling, why, evidence in spellings
            for enough in KEEPS_UP[lowering]
        ),
        Rule(operator, lowering, where, {"spelling": "real"}, False, REAL, REAL_EVIDENCE, KERNELS),
        Rule(operator, lowering, where, {}, False, SMALL, SMALL_EVIDENCE, BLOCKS),
    ]


NORMED = "one pass over q and k: 1.0 to 1.3x of the floor, Inductor 2.9 to 5.7x"
NORMED_EVIDENCE = Evidence(
    "H200",
    figures="389 vs. 1143 us (Wan, 32760 tokens), 38.1 vs. 192 (Z-Image), 34.9 vs. 112 (FLUX), "
    "61.3 vs. 158 (FLUX.2)",
    docs=PERFORMANCE,
)


def normed_rotations(lowering: str) -> list[Rule]:
    where, operator = WHERE[lowering], "qk_norm_rotary"
    return [
        Rule(operator, lowering, "cpu", {}, False, ON_A_CPU, NO_KERNEL),
        *(
            Rule(
                operator,
                lowering,
                where,
                enough,
                True,
                NORMED,
                NORMED_EVIDENCE,
                KERNELS,
                # Inductor takes 2.6 to 5 times as long.
                beyond_doubt=True,
            )
            for enough in KEEPS_UP[lowering]
        ),
        Rule(operator, lowering, where, {}, False, SMALL, SMALL_EVIDENCE, BLOCKS),
    ]


RULES = [
    *rotations("rotary", "aiter"),
    *rotations("rotary", "triton"),
    Rule(
        "rotary",
        "real",
        "any",
        {},
        True,
        "Inductor generates no code for complex numbers, and fuses their parts",
        Evidence(figures="by construction: the graph's complex operators are left out"),
        beyond_doubt=True,
    ),
    *rotations("rotary_pair", "aiter"),
    *rotations("rotary_pair", "triton"),
    *normed_rotations("triton"),
    *normed_rotations("aiter"),
]
