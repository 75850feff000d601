"""`rocm-passes doctor`: what this machine is, what will be used on it, and why the rest will not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rocm_passes import __version__
from rocm_passes.errors import OptionError
from rocm_passes.kernels.aiter import installation
from rocm_passes.options import ENVIRONMENT_PREFIX, parse
from rocm_passes.registry import IDIOMS
from rocm_passes.report.text import aligned
from rocm_passes.target import AMD_ARCHITECTURES, Target, triton_is_interpreted, triton_version, unmet

OLDEST_TORCH = (2, 11)
BACKEND = "rocm_diffusion"


def examine(target: Target | None = None) -> dict[str, Any]:
    """Everything that the doctor knows, as plain data. target: the machine's own where None."""
    target = target or Target.current()
    aiter = installation.find()
    return {
        "rocm_passes": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": {"version": torch.__version__, "build": _build()},
        "triton": {"version": triton_version(), "interpreted": triton_is_interpreted()},
        "device": {"vendor": target.vendor, "name": target.name, "architecture": target.arch or None},
        "aiter": {
            "status": aiter.status,
            "version": aiter.version,
            "detail": aiter.detail,
            "features": sorted(aiter.features),
        },
        "options": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIX)},
        "lowerings": _lowerings(target),
        "problems": _problems(target),
    }


def text(found: Mapping[str, Any], width: int = 100) -> str:
    """`examine()`'s answer for people."""
    rows = [
        ("rocm-passes", found["rocm_passes"]),
        ("python", f"{found['python']}, {found['system']}"),
        ("torch", f"{found['torch']['version']}, {found['torch']['build']}"),
        ("triton", _triton(found["triton"])),
        ("device", _device(found["device"])),
        ("aiter", f"{found['aiter']['status']}: {found['aiter']['detail']}"),
        *(("option", f"{variable}={value}") for variable, value in found["options"].items()),
    ]
    facts = [
        textwrap.fill(line, width, subsequent_indent=" " * 13, break_long_words=False)
        for line in aligned([(f"{name:<11}", value) for name, value in rows])
    ]
    return "\n".join(
        [*facts, "", "lowerings", *_lowering_lines(found["lowerings"], width), "", *_close(found)]
    )


def _lowerings(target: Target) -> list[dict[str, Any]]:
    """Every lowering of every idiom: can it run here, and if not, why not."""
    rows = []
    for idiom in IDIOMS:
        for lowering in idiom.lowerings:
            reason = unmet(lowering.requires, target)
            rows.append(
                {
                    "idiom": idiom.name,
                    "lowering": lowering.name,
                    "available": reason is None,
                    "reason": reason,
                }
            )
    return rows


def _build() -> str:
    if torch.version.hip:
        return f"built for ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return "built for CPUs only"


def _problems(target: Target) -> list[str]:
    """What keeps the backend from working, or from working well, each with what to do about it."""
    problems = []
    if _torch_numbers() < OLDEST_TORCH:
        problems.append(f"torch {torch.__version__} is too old: install torch 2.11 or newer")
    if not _is_registered():
        problems.append(
            f"backend {BACKEND!r} is not registered, so torch.compile cannot find it by name: "
            "install the package (pip install -e .)"
        )
    try:
        parse(None, None)
    except OptionError as error:
        problems.append(str(error))
    if target.vendor == "amd" and target.arch not in AMD_ARCHITECTURES:
        checked = ", ".join(AMD_ARCHITECTURES)
        problems.append(f"the Triton kernels are not checked on {target.arch}, only on {checked}")
    return problems


def _torch_numbers() -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])


def _is_registered() -> bool:
    entries = importlib.metadata.entry_points(group="torch_dynamo_backends")
    return BACKEND in entries.names


def _triton(found: Mapping[str, Any]) -> str:
    if found["version"] is None:
        return "not installed"
    return str(found["version"]) + (", interpreted (TRITON_INTERPRET=1)" if found["interpreted"] else "")


def _device(found: Mapping[str, Any]) -> str:
    if found["vendor"] == "cpu":
        return "no GPU: graphs run on the CPU"
    return f"{found['name']} ({found['vendor']}, {found['architecture']})"


def _lowering_lines(rows: Iterable[Mapping[str, Any]], width: int) -> list[str]:
    cells = [
        (f"  {r['idiom']}", r["lowering"], "available" if r["available"] else f"not here: {r['reason']}")
        for r in rows
    ]
    lines = aligned(cells)
    indent = len(lines[0]) - len(cells[0][-1]) if lines else 0
    return [
        textwrap.fill(line, width, subsequent_indent=" " * (indent + 2), break_long_words=False)
        if len(line) > width
        else line
        for line in lines
    ]


def _close(found: Mapping[str, Any]) -> list[str]:
    if not found["problems"]:
        return [f'no problems found: torch.compile(model, backend="{BACKEND}") will work here']
    return [f"problem: {problem}" for problem in found["problems"]]
