"""Reads the facts of this machine. No step may raise: a broken installation is what the doctor is
for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rocm_passes import __version__, torch_version
from rocm_passes.cli.doctor.machine import (
    Access,
    Aiter,
    DeviceNode,
    Gpu,
    Library,
    LoweringRow,
    Machine,
    Miopen,
)

BACKEND = "rocm_diffusion"
LIBRARIES = ("diffusers", "transformers", "accelerate", "numpy")
#: Variables that change what torch sees, how MIOpen searches, or what this package does.
VARIABLES = (
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("HSA_OVERRIDE_GFX_VERSION", "TRITON_INTERPRET", "PYTORCH_MIOPEN_SUGGEST_NHWC"),
    *("MIOPEN_FIND_MODE", "MIOPEN_FIND_ENFORCE", "MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR"),
    *("MIOPEN_NAIVE_DISABLE_IF_ALT", "MIOPEN_DISABLE_CACHE"),
    *("AITER_TRITON_ONLY", "AITER_AOT_IMPORT"),
)
_OUR_PREFIX = "ROCM_PASSES_"
_TRITON_DISTRIBUTIONS = (
    "triton",
    "pytorch-triton-rocm",
    "triton-rocm",
    "pytorch-triton",
    "triton-windows",
)
_KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")

T = TypeVar("T")


def this_machine() -> Machine:
    """The facts of this machine. Imports torch, Triton and AMD's aiter where they are installed."""
    machine = Machine(
        rocm_passes=__version__,
        python=sys.version_info[:3],
        system=f"{platform.system()} {platform.machine()}",
        torch=_torch(),
        kernel_archs=_quietly(kernel_archs, ()),
        nodes=_quietly(device_nodes, ()),
        groups=_quietly(_groups, ()),
        rocm=_quietly(_rocm, None),
        triton=_triton(),
        interpreted=os.environ.get("TRITON_INTERPRET") == "1",
        libraries={name: Library(_version(name)) for name in LIBRARIES},
        variables=variables(os.environ),
        registered=BACKEND in importlib.metadata.entry_points(group="torch_dynamo_backends").names,
    )
    if not machine.torch.usable or torch_version.problem(machine.torch.version) is not None:
        return machine
    return _with_torch(machine)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment that matter here, in a fixed order."""
    ours = sorted(name for name in environment if name.startswith(_OUR_PREFIX))
    return {name: environment[name] for name in (*VARIABLES, *ours) if name in environment}


def kernel_archs(nodes: Path = _KFD_NODES) -> tuple[str, ...]:
    """Architectures of the AMD GPUs that the kernel driver lists: "gfx942" for gfx_target_version
    90402.
    """
    found = []
    for properties in sorted(nodes.glob("*/properties"), key=lambda p: int(p.parent.name)):
        fields = dict(
            line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line
        )
        number = int(fields.get("gfx_target_version", 0))
        if number:
            found.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return tuple(found)


def device_nodes(dev: Path = Path("/dev")) -> tuple[DeviceNode, ...]:
    """/dev/kfd and the render nodes; the paths are written as they are on every machine."""
    paths = [dev / "kfd", *sorted((dev / "dri").glob("renderD*"))]
    return tuple(DeviceNode(f"/dev/{p.relative_to(dev)}", _access(p), _group_of(p)) for p in paths)


def _access(path: Path) -> Access:
    if not path.exists():
        return "absent"
    return "usable" if os.access(path, os.R_OK | os.W_OK) else "denied"


def _group_of(path: Path) -> str:
    return _quietly(path.group, "") or _quietly(lambda: str(path.stat().st_gid), "")


def _groups() -> tuple[str, ...]:
    return tuple(sorted(map(_group_name, {*os.getgroups()})))


def _group_name(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _rocm() -> str | None:
    root = os.environ.get("ROCM_PATH") or "/opt/rocm"
    file = Path(root) / ".info" / "version"
    return file.read_text().strip() if file.is_file() else None


def _torch() -> Library:
    version = torch_version.installed()
    return Library(version, _import_error("torch") if version else None)


def _triton() -> Library:
    version = next((v for name in _TRITON_DISTRIBUTIONS if (v := _version(name))), None)
    error = _import_error("triton")
    if version is None and error is None:
        version = str(getattr(sys.modules["triton"], "__version__", "of unknown version"))
    return Library(version, error if version else None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _with_torch(machine: Machine) -> Machine:
    """What only torch, or modules that import it, can tell."""
    import torch

    gpus, error = _gpus(torch)
    machine = replace(
        machine,
        hip=torch.version.hip,
        cuda=torch.version.cuda,
        gpus=gpus,
        gpu_error=error,
        miopen=_quietly(lambda: _miopen(torch), Miopen()) if torch.version.hip else None,
        aiter=_quietly(_aiter, Aiter()),
    )
    option_error = _option_error()
    return replace(
        machine, option_error=option_error, lowerings=_quietly(lambda: lowerings(machine), ())
    )


def _gpus(torch: Any) -> tuple[tuple[Gpu, ...], str | None]:
    try:
        count = torch.cuda.device_count()
        properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    except Exception as error:
        return (), f"{type(error).__name__}: {' '.join(str(error).split())}"
    return tuple(_gpu(p, bool(torch.version.hip)) for p in properties), None


def _gpu(properties: Any, amd: bool) -> Gpu:
    arch = (
        properties.gcnArchName.split(":")[0] if amd else f"sm_{properties.major}{properties.minor}"
    )
    return Gpu(
        vendor="amd" if amd else "nvidia",
        arch=arch,
        name=properties.name,
        gib=round(properties.total_memory / 2**30, 1),
        integrated=bool(getattr(properties, "is_integrated", False)),
    )


def _miopen(torch: Any) -> Miopen:
    number = torch.backends.cudnn.version()
    home = Path.home()
    database = os.environ.get("MIOPEN_USER_DB_PATH") or str(home / ".config" / "miopen")
    cache = os.environ.get("MIOPEN_CUSTOM_CACHE_DIR") or str(home / ".cache" / "miopen")
    return Miopen(
        version=miopen_version(number) if number else None,
        database=database,
        cache=cache,
        writable=all(_can_write(Path(folder)) for folder in (database, cache)),
    )


def miopen_version(number: int) -> tuple[int, int, int]:
    """torch.backends.cudnn.version() of a ROCm build: 3005001 is MIOpen 3.5.1."""
    return number // 1_000_000, number // 1000 % 1000, number % 1000


def _can_write(folder: Path) -> bool:
    """Whether files can be written into the folder, or the folder made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _aiter() -> Aiter:
    from rocm_passes.kernels.aiter import installation

    found = installation.find()
    return Aiter(found.status, found.version, found.detail, tuple(sorted(found.features)))


def _option_error() -> str | None:
    from rocm_passes import registry  # noqa: F401  (declares the idioms' names)
    from rocm_passes.errors import OptionError
    from rocm_passes.options import parse

    try:
        parse(None, None)
    except OptionError as error:
        return str(error)
    return None


def lowerings(machine: Machine) -> tuple[LoweringRow, ...]:
    """Every lowering of every idiom on the machine's first GPU, or on its CPU."""
    from rocm_passes.registry import IDIOMS
    from rocm_passes.target import Target, unmet

    gpu, triton = machine.gpu, machine.triton.version if machine.triton.usable else None
    about = ("cpu", "", "CPU") if gpu is None else (gpu.vendor, gpu.arch, gpu.name)
    target = Target(*about, str(machine.torch.version), triton, machine.interpreted)
    return tuple(
        LoweringRow(idiom.name, lowering.name, unmet(lowering.requires, target))
        for idiom in IDIOMS
        for lowering in idiom.lowerings
    )


def _quietly(read: Callable[[], T], otherwise: T) -> T:
    """What `read` returns; `otherwise` where the system does not let it be read."""
    try:
        return read()
    except Exception:
        return otherwise
