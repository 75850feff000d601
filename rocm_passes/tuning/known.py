"""What is known of a call: measured on this machine, or shipped with the package.

Shipped files (`shipped/*.json`, of the store's format) are looked up by architecture, then by its
family, and never across versions that matter: torch's and Triton's minor version, the
convolution library's, this package's, aiter's.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rocm_passes import __version__
from rocm_passes.kernels.aiter import installation
from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning.store import Choices, Measured, StoreError, load, merged, store

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "shipped"
HERE = "on this machine"
#: Architectures whose times are alike enough to order the same candidates.
FAMILIES = {
    "gfx940": "CDNA 3",
    "gfx941": "CDNA 3",
    "gfx942": "CDNA 3",
    "gfx950": "CDNA 4",
    "gfx1100": "RDNA 3",
    "gfx1101": "RDNA 3",
    "gfx1102": "RDNA 3",
    "gfx1200": "RDNA 4",
    "gfx1201": "RDNA 4",
}


@dataclass(frozen=True)
class Known:
    """origin: where it was measured, in words behind "measured"."""

    times: Measured
    origin: str = HERE

    def covers(self, names: Sequence[str]) -> bool:
        return all(name in self.times.ms or name in self.times.skipped for name in names)


def machine(target: Target) -> str:
    """What a call's measurement holds for: architecture, torch, the convolution library, and
    aiter.
    """
    parts = [target.label, f"torch {_release(target)}"]
    library = torch.backends.cudnn.version() if target.is_gpu else None
    if library:
        parts.append(f"{'miopen' if target.vendor == 'amd' else 'cudnn'} {library}")
    aiter = installation.find()
    if target.vendor == "amd" and aiter.status == "usable":
        parts.append(f"aiter {aiter.version}")
    return " / ".join(parts)


def site_machine(target: Target) -> str:
    """What a site's measurement holds for: the compilers, and whose kernels are compared."""
    parts = [target.label, f"torch {_release(target)}", f"triton {target.triton_version}"]
    parts.append(f"rocm-passes {__version__}")
    aiter = installation.find()
    if aiter.version:
        parts.append(f"aiter {aiter.version}")
    return " / ".join(parts)


def _release(target: Target) -> str:
    return target.torch_version.split("+")[0]


def known(options: Options, where: str, key: str) -> Known | None:
    """From the user's file, else from the package's."""
    found = store(options.choices).find(where, key)
    if found is not None:
        return Known(found)
    return shipped_for(where, key)


def knows_sites(options: Options, target: Target) -> bool:
    """Was any site measured on such a machine?"""
    where = site_machine(target)
    mine = store(options.choices).choices()
    return bool(mine.get(where)) or any(_same_versions(m, where) for m in _shipped())


def shipped_for(where: str, key: str) -> Known | None:
    """From the package's files alone."""
    return shipped(where, key, _shipped())


def shipped(where: str, key: str, choices: Choices) -> Known | None:
    """Of the same architecture, else of one of its family; versions must agree."""
    alike = [m for m in choices if key in choices[m] and _same_versions(m, where)]
    mine = _arch(where)
    for theirs in sorted(alike, key=lambda m: (_arch(m) != mine, m)):
        arch = _arch(theirs)
        if arch == mine:
            return Known(choices[theirs][key], f"on another {arch}, shipped with this package")
        if FAMILIES.get(arch) is not None and FAMILIES.get(arch) == FAMILIES.get(mine):
            origin = f"on a {arch} of the same family, shipped with this package"
            return Known(choices[theirs][key], origin)
    return None


@functools.cache
def _shipped() -> Choices:
    found: Choices = {}
    for path in sorted(SHIPPED.glob("*.json")):
        try:
            found = merged(found, load(path))
        except StoreError as error:
            log.warning("rocm_passes: %s", error)
    return found


def _arch(where: str) -> str:
    return where.split(" / ")[0]


def _same_versions(one: str, other: str) -> bool:
    return _versions(one) == _versions(other)


def _versions(where: str) -> list[str]:
    """Each library's name and minor version. cuDNN and MIOpen count in one number."""
    found = []
    for part in where.split(" / ")[1:]:
        name, _, version = part.partition(" ")
        if name in ("torch", "triton"):
            version = ".".join(re.findall(r"\d+", version)[:2])
        found.append(f"{name} {version}")
    return found
