"""What Inductor's cache key must hold besides what Inductor itself hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rocm_passes.kernels.aiter import contract, installation
from rocm_passes.kernels.aiter.aiter_conv import needs_conv
from rocm_passes.kernels.aiter.conv_contract import Entry
from rocm_passes.options import Options
from rocm_passes.target import Target, unmet
from rocm_passes.tuning.store import store


@cache
def _source_hash() -> str:
    """Of every source file of the package: a changed kernel or matcher must miss the caches."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _convolutions(target: Target) -> list[str | None]:
    """Which convolutions of aiter's can run: FlyDSL is a package of its own, which comes and goes
    without aiter.
    """
    if target.vendor != "amd":
        return []
    entries: tuple[Entry, ...] = ("flydsl", "triton", "winograd")
    return [unmet([needs_conv(entry)], target) for entry in entries]


def cache_key(options: Options, target: Target, kept: Sequence[str]) -> str:
    """Everything that can change the generated code and that Inductor does not itself hash."""
    aiter = installation.find()
    parts = [
        _source_hash(),
        repr(options),
        repr(target),
        repr(tuple(kept)),
        repr((aiter.status, aiter.version, sorted(aiter.features), contract.without_ck())),
        repr(_convolutions(target)),
        repr(torch.version.hip or torch.version.cuda),
        store(options.choices).digest() if target.is_gpu else "",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
