"""What Inductor's cache key must hold besides what Inductor itself hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rocm_passes.kernels.aiter import installation
from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning import ranks
from rocm_passes.tuning.store import digest, store
from rocm_passes.tuning.tuning import card


@cache
def _source_hash() -> str:
    """Of every source file of the package: a changed kernel or matcher must miss the caches."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_key(options: Options, target: Target, kept: Sequence[str]) -> str:
    """Everything that can change the generated code and that Inductor does not itself hash."""
    aiter = installation.find()
    parts = [
        _source_hash(),
        repr(options),
        repr(target),
        repr(tuple(kept)),
        repr((aiter.status, aiter.version, sorted(aiter.features))),
        repr(torch.version.hip or torch.version.cuda),
        _measurements(options, target) if target.is_gpu else "",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _measurements(options: Options, target: Target) -> str:
    """A digest of what is known: in a process group also of what all ranks start from."""
    kept, group = store(options.choices), ranks.current()
    base = "" if group is None else digest(group.base(kept.choices, card(target)))
    return base + kept.digest()
