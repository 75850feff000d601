"""Attention that torch's kernels for AMD compute wrongly, as reported: data, for the rules and for
the lowerings.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The kernels of torch's that these reports are about.
KERNELS = ("flash", "efficient")


@dataclass(frozen=True)
class KnownWrong:
    """On the architecture, torch's kernels give wrong values for heads of this size."""

    arch: str
    head_size: int
    report: str
    figures: str

    def concerns(self, kernel: str, head_size: object, arch: str) -> bool:
        return (kernel in KERNELS and head_size == self.head_size) and arch == self.arch

    @property
    def said(self) -> str:
        return f"torch's kernel gives wrong values for heads of {self.head_size} on {self.arch}"


KNOWN_WRONG = (
    KnownWrong(
        "gfx1100",
        384,
        "vllm-project/vllm-omni#7484",
        "Wan's VAE: a relative error of 1 to 5.65e30, another one in each run; math is right",
    ),
    KnownWrong(
        "gfx1151",
        512,
        "pytorch/pytorch#189849, ROCm/TheRock#6561",
        "Stable Diffusion 3's VAE: values of 512.0 in place of below 1, torch 2.14 of 2026-07",
    ),
)


def known_wrong(kernel: str, head_size: object, arch: str) -> KnownWrong | None:
    """The report about such a call, or None."""
    return next((w for w in KNOWN_WRONG if w.concerns(kernel, head_size, arch)), None)
