"""What the doctor knows of a machine, as plain data. collect.py fills it in; diagnosis.py only
reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Whether the user's process can open a device node.
Access = Literal["usable", "denied", "absent"]


@dataclass(frozen=True)
class Library:
    """A Python library. version is None where it is absent. error says why its import fails, if it
    does.
    """

    version: str | None = None
    error: str | None = None

    @property
    def usable(self) -> bool:
        return self.version is not None and self.error is None


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees. arch: "gfx942" or "sm_90", as Target.arch. integrated: it is part of
    the CPU.
    """

    vendor: Literal["amd", "nvidia"]
    arch: str
    name: str
    gib: float = 0.0
    integrated: bool = False


@dataclass(frozen=True)
class DeviceNode:
    """A file in /dev that ROCm opens, and the group that may open it."""

    path: str
    access: Access
    group: str = ""


@dataclass(frozen=True)
class Miopen:
    """The convolution library of ROCm. version as (3, 5, 1), of torch's build; None where it cannot
    be told.

    database, cache: folders that MIOpen writes to, by its variables or its defaults. writable: both
    are.
    """

    version: tuple[int, ...] | None = None
    database: str = ""
    cache: str = ""
    writable: bool = True


@dataclass(frozen=True)
class Aiter:
    """What lies under the name aiter: see kernels/aiter/installation.py."""

    status: Literal["usable", "absent", "unrelated", "broken"] = "absent"
    version: str | None = None
    detail: str = "aiter is not installed"
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoweringRow:
    """One lowering of one idiom. reason: why it cannot run here, or None where it can."""

    idiom: str
    lowering: str
    reason: str | None


@dataclass(frozen=True)
class Machine:
    """Everything that a diagnosis depends on.

    hip, cuda: what torch was built for. gpus: those that torch sees, in its order. kernel_archs:
    the AMD GPUs that the kernel driver lists, whatever torch sees. rocm: the version of the ROCm
    installed beside torch.
    variables: environment variables that matter here. registered: torch finds the backend by its
    name.
    option_error: what is wrong with ROCM_PASSES_* variables.
    """

    rocm_passes: str = ""
    python: tuple[int, int, int] = (3, 11, 0)
    system: str = "Linux x86_64"
    torch: Library = field(default_factory=Library)
    hip: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str | None = None
    kernel_archs: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    groups: tuple[str, ...] = ()
    rocm: str | None = None
    miopen: Miopen | None = None
    triton: Library = field(default_factory=Library)
    interpreted: bool = False
    aiter: Aiter = field(default_factory=Aiter)
    libraries: Mapping[str, Library] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    registered: bool = True
    option_error: str | None = None
    lowerings: tuple[LoweringRow, ...] = ()

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that torch uses unless told otherwise."""
        return self.gpus[0] if self.gpus else None

    @property
    def has_amd_hardware(self) -> bool:
        return bool(self.kernel_archs) or any(n.path == "/dev/kfd" for n in self.present_nodes)

    @property
    def present_nodes(self) -> tuple[DeviceNode, ...]:
        return tuple(n for n in self.nodes if n.access != "absent")

    @property
    def denied_nodes(self) -> tuple[DeviceNode, ...]:
        return tuple(n for n in self.nodes if n.access == "denied")
