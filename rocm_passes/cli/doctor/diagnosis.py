"""The doctor's judgement: from a Machine to findings. Pure functions: a test describes a machine as
data.

A finding is an error (the backend will not work), a warning (it will work, but not well or not as
meant) or a note. Each says what was found and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rocm_passes import torch_version
from rocm_passes.cli.doctor.known import ADVICE, INTEGRATED, KNOWN_ISSUES
from rocm_passes.cli.doctor.machine import Gpu, Machine

BACKEND = "rocm_diffusion"
OLDEST_PYTHON = (3, 11)
#: As Target's AMD_ARCHITECTURES, which cannot be imported where torch is missing; a test compares
#: them.
CHECKED_ARCHITECTURES = ("gfx942", "gfx950", "gfx1100", "gfx1201")
#: compile_pipeline and the recognised models stand on these; as in pyproject.toml's extra `models`.
OLDEST_LIBRARIES = {"diffusers": (0, 36), "transformers": (4, 57)}

Severity = Literal["error", "warning", "note"]
EXIT_CODES: dict[Severity, int] = {"note": 0, "warning": 1, "error": 2}


@dataclass(frozen=True)
class Finding:
    """name: a stable word for scripts. says: what was found. fix: what to do. source: where it is
    reported.
    """

    severity: Severity
    name: str
    says: str
    fix: str = ""
    source: str = ""

    def to_dict(self) -> dict[str, str]:
        return {
            "severity": self.severity,
            "name": self.name,
            "says": self.says,
            "fix": self.fix,
            "source": self.source,
        }

    def __str__(self) -> str:
        source = f" [{self.source}]" if self.source else ""
        return f"{self.says}{': ' if self.fix else ''}{self.fix}{source}"


def diagnose(machine: Machine) -> list[Finding]:
    """Everything to say of a machine: errors first, then warnings, then notes."""
    found = [
        *_python(machine),
        *_torch(machine),
        *_backend(machine),
        *_gpu_visible(machine),
        *_triton(machine),
        *_devices(machine),
        *_architecture(machine),
        *_override(machine),
        *_miopen(machine),
        *_aiter(machine),
        *_libraries(machine),
        *_known(machine),
    ]
    return sorted(found, key=lambda f: -EXIT_CODES[f.severity])


def exit_code(findings: list[Finding]) -> int:
    """0: will work; 1: will work, with warnings; 2: will not work."""
    return max((EXIT_CODES[f.severity] for f in findings), default=0)


def verdict(findings: list[Finding]) -> str:
    """The last line of the doctor."""
    call = f'torch.compile(model, backend="{BACKEND}")'
    code = exit_code(findings)
    if code == EXIT_CODES["error"]:
        return f"{call} will not work here"
    warnings = sum(f.severity == "warning" for f in findings)
    counted = f"{warnings} warning{'' if warnings == 1 else 's'}"
    return f"{call} will work here" + (f", with {counted}" if warnings else "")


def _python(machine: Machine) -> Iterator[Finding]:
    if machine.python < OLDEST_PYTHON:
        version = ".".join(map(str, machine.python))
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding(
            "error", "python-old", f"Python {version} is too old", f"use Python {oldest} or newer"
        )


def _torch(machine: Machine) -> Iterator[Finding]:
    problem = torch_version.problem(machine.torch.version)
    if problem is not None:
        says, _, fix = problem.partition(": ")
        yield Finding(
            "error", "torch-missing" if machine.torch.version is None else "torch-old", says, fix
        )
    elif machine.torch.error is not None:
        says = f"torch {machine.torch.version} fails to import ({machine.torch.error})"
        yield Finding("error", "torch-broken", says, "reinstall it for the ROCm of this machine")


def _backend(machine: Machine) -> Iterator[Finding]:
    if not machine.registered:
        says = f"backend {BACKEND!r} is not registered, so torch.compile cannot find it by name"
        yield Finding(
            "error", "backend-unregistered", says, "install the package (pip install -e .)"
        )
    if machine.option_error is not None:
        yield Finding("error", "option", machine.option_error)


def _gpu_visible(machine: Machine) -> Iterator[Finding]:
    """A build for a GPU that sees none, or an AMD GPU that torch was not built for."""
    if not machine.torch.usable or machine.gpus:
        return
    if machine.hip is not None:
        says = f"torch is built for ROCm {machine.hip} and sees no GPU"
        yield Finding("error", "no-visible-gpu", says, _why_invisible(machine))
    elif machine.has_amd_hardware:
        archs = ", ".join(machine.kernel_archs) or "an AMD GPU"
        build = f"CUDA {machine.cuda}" if machine.cuda else "CPUs only"
        says = f"this machine has {archs}, and torch {machine.torch.version} is built for {build}"
        yield Finding(
            "error", "torch-not-rocm", says, f"install torch for ROCm, {torch_version.INSTALL}"
        )
    elif machine.cuda is not None:
        says = f"torch is built for CUDA {machine.cuda} and sees no GPU: graphs run on the CPU"
        yield Finding(
            "warning", "no-visible-cuda-gpu", says, "check CUDA_VISIBLE_DEVICES and the driver"
        )


def _why_invisible(machine: Machine) -> str:
    hiding = [f"{name}={machine.variables[name]!r}" for name in _hiding_variables(machine)]
    if hiding:
        return f"unset {' and '.join(hiding)}"
    if not any(n.path == "/dev/kfd" for n in machine.present_nodes):
        return (
            "/dev/kfd is absent: load the amdgpu driver, or start the container with "
            "--device=/dev/kfd "
            "--device=/dev/dri --group-add video --group-add render"
        )
    if machine.denied_nodes:
        groups = (
            ",".join(sorted({n.group for n in machine.denied_nodes if n.group})) or "render,video"
        )
        paths = ", ".join(n.path for n in machine.denied_nodes)
        return (
            f"{paths} cannot be opened by this user (groups "
            f"{', '.join(machine.groups) or 'none'}): "
            f"sudo usermod -aG {groups} $USER, then log in anew; in a container --group-add"
        )
    if not any("/renderD" in n.path for n in machine.present_nodes):
        return "no /dev/dri/renderD* is there: start the container with --device=/dev/dri"
    if machine.gpu_error is not None:
        return f"the runtime says {machine.gpu_error}"
    archs = ", ".join(machine.kernel_archs)
    return (
        f"the driver lists {archs or 'no GPU'}: check `rocminfo`, `dmesg`, and that the driver is "
        "new enough "
        f"for ROCm {machine.hip}"
    )


def _hiding_variables(machine: Machine) -> list[str]:
    """Variables that leave no device visible: empty, or beginning with an index that does not
    exist.
    """
    names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    count = len(machine.kernel_archs)
    hiding = []
    for name in names:
        value = machine.variables.get(name)
        first = value.split(",")[0].strip() if value is not None else None
        if first is not None and (
            first in ("", "-1") or (first.isdigit() and 0 < count <= int(first))
        ):
            hiding.append(name)
    return hiding


def _triton(machine: Machine) -> Iterator[Finding]:
    """On a GPU Inductor itself needs Triton: without it nothing compiles."""
    build_for_gpu = bool(machine.gpus) or machine.hip is not None
    if not machine.torch.usable or machine.triton.usable:
        return
    if machine.triton.error is not None:
        says = f"Triton {machine.triton.version} fails to import ({machine.triton.error})"
    else:
        says = "Triton is not installed"
    if not build_for_gpu:
        yield Finding("note", "triton-missing", f"{says}; on a CPU it is not needed")
        return
    name = "pytorch-triton-rocm of the same index as torch" if machine.hip else "triton"
    where = machine.gpu.name if machine.gpu else "a GPU"
    yield Finding(
        "error",
        "triton-missing" if machine.triton.version is None else "triton-broken",
        f"{says}, and on {where} torch.compile generates Triton code",
        f"install {name}",
    )


def _devices(machine: Machine) -> Iterator[Finding]:
    gpu = machine.gpu
    if gpu is not None and is_integrated(gpu):
        others = [i for i, other in enumerate(machine.gpus) if not is_integrated(other)]
        if others:
            fix = f"put the other first: HIP_VISIBLE_DEVICES={','.join(map(str, others))}"
            says = (
                f"torch's first GPU is the integrated {gpu.name} ({gpu.arch}), before "
                f"{machine.gpus[others[0]].name}"
            )
            yield Finding("warning", "integrated-first", says, fix)
    if len({g.arch for g in machine.gpus}) > 1:
        archs = ", ".join(g.arch for g in machine.gpus)
        says = (
            f"GPUs of several architectures are visible ({archs}); choices are kept for each of "
            "them"
        )
        yield Finding("note", "several-architectures", says)
    if machine.hip is not None and "ROCR_VISIBLE_DEVICES" in machine.variables:
        hip = next(
            (n for n in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if n in machine.variables),
            None,
        )
        if hip is not None:
            says = (
                f"ROCR_VISIBLE_DEVICES and {hip} are both set: the second counts within what "
                "the first left"
            )
            yield Finding("warning", "two-device-variables", says, "set one of them")
    hip_devices = machine.variables.get("HIP_VISIBLE_DEVICES")
    cuda_devices = machine.variables.get("CUDA_VISIBLE_DEVICES")
    if (
        machine.hip is not None
        and None not in (hip_devices, cuda_devices)
        and hip_devices != cuda_devices
    ):
        says = (
            f"HIP_VISIBLE_DEVICES={hip_devices} and CUDA_VISIBLE_DEVICES={cuda_devices} "
            "contradict each other"
        )
        yield Finding("warning", "contradicting-device-variables", says, "set one of them")


def is_integrated(gpu: Gpu) -> bool:
    return gpu.integrated or gpu.arch in INTEGRATED


def _architecture(machine: Machine) -> Iterator[Finding]:
    gpu = machine.gpu
    if gpu is None or gpu.vendor != "amd" or gpu.arch in CHECKED_ARCHITECTURES:
        return
    checked = ", ".join(CHECKED_ARCHITECTURES)
    advice = ADVICE.get(gpu.arch, "Nothing is known of it here: compare one result with eager.")
    says = f"the Triton kernels are not checked on {gpu.arch}, only on {checked}"
    yield Finding("warning", "unchecked-architecture", says, advice)


def _override(machine: Machine) -> Iterator[Finding]:
    value = machine.variables.get("HSA_OVERRIDE_GFX_VERSION")
    if value is None:
        return
    overridden = override_arch(value)
    if overridden is None:
        says = f"HSA_OVERRIDE_GFX_VERSION={value!r} is no version such as 11.0.0"
        yield Finding("warning", "gfx-override-malformed", says, "correct it or unset it")
        return
    for arch in dict.fromkeys(machine.kernel_archs):
        if arch == overridden:
            yield Finding(
                "note",
                "gfx-override-needless",
                f"HSA_OVERRIDE_GFX_VERSION={value} is what {arch} is",
            )
        elif _generation(arch) != _generation(overridden):
            says = (
                f"HSA_OVERRIDE_GFX_VERSION={value} runs the code of {overridden} on {arch}, "
                "another generation"
            )
            yield Finding("warning", "gfx-override-generation", says, "unset it")
        else:
            says = (
                f"HSA_OVERRIDE_GFX_VERSION={value} runs the code of {overridden} on {arch}: "
                "kernels and measured "
                f"choices are those of {overridden}"
            )
            yield Finding(
                "warning", "gfx-override", says, f"unset it if your torch has code for {arch}"
            )
    if not machine.kernel_archs:
        says = f"HSA_OVERRIDE_GFX_VERSION={value} makes every GPU look like {overridden}"
        yield Finding(
            "warning", "gfx-override", says, "unset it if your torch has code for your GPU"
        )


def override_arch(value: str) -> str | None:
    """ "11.0.0" is gfx1100, "9.0.10" gfx90a; None for what is no version."""
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", value.strip())
    if numbers is None:
        return None
    major, minor, step = map(int, numbers.groups())
    return f"gfx{major}{minor:x}{step:x}"


def _generation(arch: str) -> str:
    """gfx9, gfx10, gfx11, gfx12: code of one does not run on another."""
    return arch[: len(arch) - 2]


def _miopen(machine: Machine) -> Iterator[Finding]:
    miopen = machine.miopen
    if miopen is not None and not miopen.writable:
        says = (
            f"MIOpen cannot write {miopen.database} or {miopen.cache}: it searches anew in "
            "every process"
        )
        fix = "set MIOPEN_USER_DB_PATH and MIOPEN_CUSTOM_CACHE_DIR to folders that you may write"
        yield Finding("warning", "miopen-unwritable", says, fix, "jamiepine/voicebox#865")


def _aiter(machine: Machine) -> Iterator[Finding]:
    on_amd = machine.hip is not None
    aiter = machine.aiter
    if aiter.status in ("unrelated", "broken"):
        yield Finding("warning" if on_amd else "note", f"aiter-{aiter.status}", aiter.detail)
    elif aiter.status == "absent" and on_amd:
        yield Finding("note", "aiter-absent", aiter.detail)


def _libraries(machine: Machine) -> Iterator[Finding]:
    for name, oldest in OLDEST_LIBRARIES.items():
        version = machine.libraries.get(name)
        text = version.version if version else None
        wanted = ".".join(map(str, oldest))
        if text is None:
            continue
        numbers = tuple(map(int, re.findall(r"\d+", text)[:2]))
        if numbers < oldest:
            says = f"{name} {text} is older than {wanted}, the oldest that is tested"
            yield Finding("warning", f"{name}-old", says, f"pip install '{name}>={wanted}'")


def _known(machine: Machine) -> Iterator[Finding]:
    for issue in KNOWN_ISSUES:
        if issue.applies(machine):
            severity: Severity = "note" if issue.note else "warning"
            yield Finding(severity, issue.name, issue.says, issue.fix, issue.source)
