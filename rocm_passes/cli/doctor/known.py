"""What is known of AMD architectures, and of versions that misbehave: tables, each row with its
source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rocm_passes.cli.doctor.machine import Machine

#: AMD GPUs that the kernels of this package were not checked on: what to expect there.
ADVICE = {
    "gfx90a": "MI200: the Triton kernels compile for it (64 lanes, as on gfx942) but are not "
    "checked on it, and "
    "aiter's wheels have no code for it. Start with options={'select': 'auto'} and compare one "
    "result with eager.",
    "gfx1030": "RX 6800/6900: no matrix instructions for bf16, so float16 is the faster dtype. The "
    "library's "
    "search has crashed here (unslothai/unsloth#11636): leave conv_search off.",
    "gfx1101": "RX 7700/7800: the same instructions as gfx1100, which is checked. PyTorch's wheels "
    "may lack it: "
    "HSA_OVERRIDE_GFX_VERSION=11.0.0 then runs the code of gfx1100.",
    "gfx1151": "Ryzen AI Max (integrated): its memory is the system's, so copies cost more than "
    "arithmetic. "
    "bf16 VAEs have turned black here (Comfy-Org/ComfyUI#14249): compare one result with eager.",
    "gfx1200": "RX 9060: the same instructions as gfx1201, which is checked.",
}

#: AMD GPUs that are part of a CPU. torch of some versions does not say so itself.
INTEGRATED = frozenset(
    {"gfx902", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103"}
    | {"gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)

_CDNA = ("gfx908", "gfx90a", "gfx942", "gfx950")


@dataclass(frozen=True)
class KnownIssue:
    """Something that users of a version met.

    applies: on which machines. says, fix: for the user. source: where it is reported. note: it is
    common and harmless until it is met, so it is no warning.
    """

    name: str
    applies: Callable[[Machine], bool]
    says: str
    fix: str
    source: str
    note: bool = False


def _miopen(machine: Machine, *, before: tuple[int, ...]) -> bool:
    version = machine.miopen.version if machine.miopen else None
    return version is not None and version < before


def _searches(machine: Machine) -> bool:
    """MIOpen will search for every new shape: by find mode, or because this package was told to."""
    return (
        machine.variables.get("ROCM_PASSES_CONV_SEARCH") == "on"
        or machine.variables.get("MIOPEN_FIND_MODE", "") in ("1", "NORMAL")
        or machine.variables.get("MIOPEN_FIND_ENFORCE", "")
        in ("3", "4", "SEARCH", "SEARCH_DB_UPDATE")
    )


def _hip(machine: Machine) -> tuple[int, ...]:
    """(7, 14) for a torch that was built for HIP 7.14.60850; () where it was not."""
    return tuple(int(n) for n in (machine.hip or "").split(".")[:2] if n.isdigit())


def _torch(machine: Machine) -> str:
    return machine.torch.version or ""


def _arch(machine: Machine) -> str:
    return machine.gpu.arch if machine.gpu else ""


KNOWN_ISSUES = (
    KnownIssue(
        "miopen-naive-search",
        lambda m: _miopen(m, before=(3, 5, 2)) and _searches(m),
        "before version 3.5.2 MIOpen's search times its naive convolutions too: a first decode can "
        "take 30 minutes",
        "leave torch.backends.cudnn.benchmark and conv_search off, unset the MIOPEN_FIND_* "
        "variables, or use ROCm 7.14",
        "ROCm/TheRock#2591",
    ),
    KnownIssue(
        "miopen-find-db",
        lambda m: m.variables.get("ROCM_PASSES_CONV_SEARCH") == "on" and m.miopen is not None,
        "MIOpen's find-db is not reused by the next process when cudnn.benchmark is on: each start "
        "searches again",
        "leave conv_search off and measure once by `rocm-passes tune`, which keeps its results",
        "ROCm/rocm-libraries#3553",
    ),
    KnownIssue(
        "miopen-cache-disabled",
        lambda m: m.miopen is not None and m.variables.get("MIOPEN_DISABLE_CACHE") == "1",
        "MIOPEN_DISABLE_CACHE=1: MIOpen compiles its kernels anew in every process",
        "unset MIOPEN_DISABLE_CACHE",
        "ROCm/legacy-rocm-build#6008",
    ),
    KnownIssue(
        "no-conv3d-heuristics",
        lambda m: m.miopen is not None and _arch(m) in _CDNA and _hip(m) < (7, 2),
        "before ROCm 7.2 MIOpen has no heuristics for 3-D convolutions: it may take a naive kernel",
        "update to ROCm 7.2, or run `rocm-passes tune` on your script",
        "ROCm/rocm-libraries#2786",
    ),
    KnownIssue(
        "gfx1201-nan-when-warm",
        lambda m: _arch(m) == "gfx1201" and _hip(m) == (7, 14) and _torch(m).startswith("2.12"),
        "with torch 2.12 and ROCm 7.14 Z-Image was right on its first run and not finite on the "
        "second",
        "use another torch or ROCm, and check a second result for NaN",
        "Comfy-Org/ComfyUI#15914",
    ),
    KnownIssue(
        "gfx1100-wide-attention",
        lambda m: _arch(m) == "gfx1100",
        "attention with a head of 384 (Wan's VAE) is silently wrong in the fused kernels of some "
        "ROCm versions",
        "if a decode looks wrong, run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
        "vllm-project/vllm-omni#7484",
        note=True,
    ),
)
