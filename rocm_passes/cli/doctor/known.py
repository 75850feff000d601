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


def _rdna(machine: Machine) -> bool:
    return _arch(machine).startswith(("gfx10", "gfx11", "gfx12"))


def _is_set(machine: Machine, name: str, *values: str) -> bool:
    return machine.variables.get(name, "").upper() in values


def _lost_at_restart(machine: Machine) -> bool:
    """Do MIOpen's folders lie where a reboot, or the next container, finds nothing?"""
    miopen = machine.miopen
    folders = (miopen.database, miopen.cache) if miopen else ()
    return any(folder.startswith(("/tmp", "/var/tmp", "/dev/shm")) for folder in folders)


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
        "miopen-first-run",
        lambda m: _miopen(m, before=(3, 5, 2)) and "MIOPEN_FIND_MODE" not in m.variables,
        "before version 3.5.2 MIOpen's first run of each new resolution can take minutes",
        "set MIOPEN_FIND_MODE=FAST, and keep to few resolutions and lengths; a search that was "
        "made once is kept in the find-db",
        "Comfy-Org/ComfyUI#5759, ROCm/TheRock#2591",
        note=True,
    ),
    KnownIssue(
        "miopen-naive-timed",
        lambda m: m.miopen is not None and _is_set(m, "MIOPEN_NAIVE_DISABLE_IF_ALT", "0"),
        "MIOPEN_NAIVE_DISABLE_IF_ALT=0: MIOpen's search times its naive convolutions beside others",
        "unset MIOPEN_NAIVE_DISABLE_IF_ALT",
        "ROCm/TheRock#2591",
    ),
    KnownIssue(
        "miopen-search-crashes",
        lambda m: m.miopen is not None and _arch(m) == "gfx1030" and _searches(m),
        "MIOpen's search took 10 to 23 minutes on gfx1030, and crashed",
        "leave torch.backends.cudnn.benchmark and conv_search off, and unset the MIOPEN_FIND_* "
        "variables",
        "unslothai/unsloth#11636",
    ),
    KnownIssue(
        "miopen-temporary-folder",
        _lost_at_restart,
        "MIOpen's find-db or its compiled kernels lie in a temporary folder: after a restart it "
        "searches and compiles again",
        "set MIOPEN_USER_DB_PATH and MIOPEN_CUSTOM_CACHE_DIR to folders that stay, in a container "
        "to mounted ones",
        "ROCm/legacy-rocm-build#6008",
    ),
    KnownIssue(
        "miopen-shared-database",
        lambda m: m.miopen is not None and len(m.gpus) > 1,
        "several processes that search at once have corrupted MIOpen's database",
        "give each process a MIOPEN_USER_DB_PATH of its own, or search in one process first",
        "ROCm/MIOpen#1878",
        note=True,
    ),
    KnownIssue(
        "miopen-nhwc-on-rdna",
        lambda m: (
            m.miopen is not None and _rdna(m) and _is_set(m, "ROCM_PASSES_LAYOUT", "CHANNELS_LAST")
        ),
        "channels-last convolutions of MIOpen are much slower than others on RDNA",
        "unset ROCM_PASSES_LAYOUT",
        "pytorch/pytorch#170947",
    ),
    KnownIssue(
        "miopen-nhwc-off",
        lambda m: (
            m.miopen is not None
            and _hip(m) < (7, 0)
            and _is_set(m, "ROCM_PASSES_LAYOUT", "CHANNELS_LAST")
            and not _is_set(m, "PYTORCH_MIOPEN_SUGGEST_NHWC", "1")
        ),
        "before ROCm 7.0 torch transposes the tensors of a channels-last convolution for MIOpen",
        "set PYTORCH_MIOPEN_SUGGEST_NHWC=1, or unset ROCM_PASSES_LAYOUT",
        "pytorch/pytorch#170947",
    ),
    KnownIssue(
        "miopen-rdna-conv3d",
        lambda m: m.miopen is not None and _rdna(m),
        "MIOpen has no heuristics for 3-D convolutions on RDNA: it unrolls the input in memory, "
        "which is slow and has failed at large tiles",
        "run `rocm-passes tune` on your script; if memory runs out, decode in smaller tiles",
        "ROCm/rocm-libraries#5133, ROCm/TheRock#5845",
        note=True,
    ),
    KnownIssue(
        "miopen-transposed",
        lambda m: m.miopen is not None and _arch(m) == "gfx950",
        "MIOpen's transposed convolutions reached 29 TFLOPS on an MI355X",
        "run `rocm-passes tune`: those without overlap are measured against a matrix product",
        "ROCm/MIOpen#3952",
        note=True,
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
        "rocm-7.14.1-vae-attention",
        lambda m: (m.rocm or "").startswith("7.14.1"),
        "with ROCm 7.14.1 the attention of a VAE has regressed",
        "use another ROCm, or decode within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
        "Nerogar/OneTrainer#1716",
    ),
    KnownIssue(
        "bf16-vae-black",
        lambda m: _arch(m) in ("gfx1151", "gfx1201"),
        "bf16 VAEs have given NaN, and black images, on this architecture",
        "if an image is black, decode in float32, or set check_finite to find where it begins",
        "Comfy-Org/ComfyUI#14249, Comfy-Org/ComfyUI#14379",
        note=True,
    ),
    KnownIssue(
        "gfx1201-miopen-nan",
        lambda m: m.miopen is not None and _arch(m) == "gfx1201",
        "convolutions of MIOpen have given NaN on gfx1201",
        "if a decode looks wrong, set check_finite, and compare one result with the CPU's",
        "ModelTC/LightX2V#1549",
        note=True,
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
