"""What this machine is and has: the device a graph runs on, its architecture, and the libraries
beside it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

#: Architectures that the Triton kernels are compiled for and checked on in the tests.
AMD_ARCHITECTURES = ("gfx942", "gfx950", "gfx1100", "gfx1201")

#: How an architecture is named, by vendor.
ARCHITECTURES = {"amd": r"gfx[0-9a-f]{3,}", "nvidia": r"sm_[0-9]{2,}", "cpu": "cpu"}


@dataclass(frozen=True)
class Target:
    """The device that a graph runs on.

    vendor: "amd", "nvidia" or "cpu". arch: "gfx942", "sm_90", or "" on a CPU.
    interpreted: Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors.
    """

    vendor: str
    arch: str
    name: str
    torch_version: str
    triton_version: str | None
    interpreted: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.vendor != "cpu"

    @property
    def label(self) -> str:
        return self.arch or "cpu"

    @staticmethod
    def of_device(device: torch.device | str) -> Target:
        device = torch.device(device)
        if device.type != "cuda":
            return _cpu()
        return _gpu(device.index if device.index is not None else torch.cuda.current_device())

    @staticmethod
    def of_inputs(inputs: Iterable[object]) -> Target:
        """The target of a graph: its first GPU tensor's device, or the CPU where it has none."""
        for value in inputs:
            if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                return Target.of_device(value.device)
        return _cpu()

    @staticmethod
    def current() -> Target:
        """The machine's GPU if it has one, else its CPU."""
        return Target.of_device("cuda" if torch.cuda.is_available() else "cpu")

    @staticmethod
    def named(arch: str, triton: str | None = None) -> Target | None:
        """The target of that name (gfx942, sm_90, cpu), which need not be here; None for another
        word.
        """
        for vendor, pattern in ARCHITECTURES.items():
            if re.fullmatch(pattern, arch):
                label = "" if vendor == "cpu" else arch
                return Target(vendor, label, arch, torch.__version__, triton)
        return None


def _cpu() -> Target:
    return Target("cpu", "", "CPU", torch.__version__, triton_version(), triton_is_interpreted())


@functools.lru_cache(maxsize=64)
def _gpu(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
        vendor = "amd"
    else:
        arch = f"sm_{properties.major}{properties.minor}"
        vendor = "nvidia"
    return Target(
        vendor, arch, properties.name, torch.__version__, triton_version(), triton_is_interpreted()
    )


@functools.cache
def triton_version() -> str | None:
    """The installed Triton's version, or None. (ROCm builds of torch bring it under another
    name.)
    """
    for distribution in ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        return str(importlib.import_module("triton").__version__)
    except Exception:
        return None


def triton_is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


#: A requirement answers None where it is met, and otherwise why it is not, in words for a user.
Requirement = Callable[[Target], str | None]


def unmet(requirements: Iterable[Requirement], target: Target) -> str | None:
    """The first unmet requirement's reason. One that raises counts as unmet: it must not break a
    compile.
    """
    for requirement in requirements:
        try:
            reason = requirement(target)
        except Exception as error:
            reason = f"its requirement could not be checked: {type(error).__name__}: {error}"
        if reason is not None:
            return reason
    return None


def needs_triton(target: Target) -> str | None:
    """Triton, and either a GPU or its interpreter."""
    if target.triton_version is None:
        return "Triton is not installed"
    if not target.is_gpu and not target.interpreted:
        return "Triton kernels need a GPU, and this graph runs on the CPU"
    return None


def needs_import(module: str) -> Requirement:
    """The module imports; a failure is the reason."""

    def check(_: Target) -> str | None:
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{module} does not import: {type(error).__name__}: {error}"
        return None

    return check
