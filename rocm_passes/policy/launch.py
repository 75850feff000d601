"""Who launches our Triton kernels where the option `launch` is "auto".

Inductor loads and launches its own kernels through a static launcher, without Triton: cheaper for
the host at each launch, and at the start from warm caches. `kernels/triton/static_launch.py` has
ours go through it too.

NVIDIA alone: on ROCm PyTorch skips its own test of this path (pytorch issue 168668).
"""

from __future__ import annotations

from rocm_passes.target import Target


def launched_by(asked: str, target: Target) -> str:
    """ "static", "inductor" or "python". asked: the option `launch`."""
    if asked != "auto":
        return asked
    return "static" if target.vendor == "nvidia" else "inductor"
